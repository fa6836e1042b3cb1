//! The provider host and the Rust client, against a scripted agent on a real socket and scripted servers on loopback.

mod agent;
mod detect;
mod follow;
mod odd;
mod openai;
mod readiness;
mod registrar;
mod server;
