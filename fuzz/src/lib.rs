//! What the fuzz targets check.
//!
//! The parts under test are pure, so they are compiled right into this crate: a fuzzing build then takes seconds and not
//! the minutes of the agent's HTTP and telemetry stacks, and nothing has to become public for it. A part that starts to
//! use one of those stacks breaks this build, which is as it should be.

#[path = "../../src/core/mod.rs"]
pub mod core;
#[path = "../../src/domain/mod.rs"]
pub mod domain;
#[path = "../../src/json/mod.rs"]
pub mod json;
#[path = "../../src/openai/mod.rs"]
pub mod openai;

/// The part of the client of mcpd that reads what mcpd sends.
#[path = "../../src/upstream"]
pub mod upstream {
    pub mod contract;
    pub mod task_event;
}

#[path = "../../src/openai/stream/said.rs"]
pub mod said;

pub mod merge;
pub mod sessions;
pub mod sse;
pub mod task;
