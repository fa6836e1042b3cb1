//! mcpd's list of LLMs.

use std::time::SystemTime;

use reqwest::{Response, header};

use super::http::{CALL_TIMEOUT, CallError, Mcpd};
use crate::upstream::contract::{LLMS_PATH, LlmRow};

/// What mcpd lists, and the time on mcpd's clock: ages are then right on a machine whose own clock is off.
pub struct List {
    /// The rows, in mcpd's order.
    pub rows: Vec<LlmRow>,
    /// When mcpd answered.
    pub now: SystemTime,
}

/// Asks mcpd for its list.
pub async fn list(mcpd: &Mcpd) -> Result<List, CallError> {
    let response = mcpd.send(mcpd.get(LLMS_PATH).timeout(CALL_TIMEOUT), LLMS_PATH).await?;
    let now = server_time(&response).unwrap_or_else(SystemTime::now);
    Ok(List { rows: mcpd.json(response).await?, now })
}

/// The time on the server's clock, to the second.
pub fn server_time(response: &Response) -> Option<SystemTime> {
    httpdate::parse_http_date(response.headers().get(header::DATE)?.to_str().ok()?).ok()
}
