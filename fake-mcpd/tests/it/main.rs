//! fake-mcpd driven from outside: by a small client that speaks the contract with bare HTTP calls, rightly or wrongly.

mod agent;
mod callers;
mod faults;
mod journal;
mod process;
mod results;
mod sessions;
mod tls;
mod uploads;
mod verdict;
