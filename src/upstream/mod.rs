//! mcpd: its contract, and (beside it) the calls, the control channel and the delivery of results.

pub mod contract;
