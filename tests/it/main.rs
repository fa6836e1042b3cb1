//! The agent as a whole against the fake mcpd, over real loopback sockets; one file or folder per subject. Time is paused wherever no real process
//! takes part, so that a minute of backoff costs nothing and no test waits for a clock.

mod support;

mod architecture;
mod bad_input;
mod bridge;
mod bytes;
mod capacity;
mod channel;
mod connect_proxy;
mod deadlines;
mod delivery;
mod docs;
mod faults;
mod files;
mod fuzzed;
mod hostile;
mod ingress;
mod log;
mod main_job;
mod new_user;
mod other_mcpd;
mod owner;
mod processes;
mod reconnect;
mod restart;
mod results;
mod service;
mod session_life;
mod simulation;
mod soak;
mod status;
mod telemetry;
mod tools;
mod uploads;
