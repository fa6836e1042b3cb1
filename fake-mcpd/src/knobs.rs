//! The faults as methods, for tests that read like sentences.

use std::time::Duration;

use crate::FakeMcpd;
use crate::faults::{Aim, Answer, Fault, Refused};
use crate::spec::{BadFault, Step};

impl FakeMcpd {
    /// Puts a fault into effect, or arms it.
    pub fn fault(&self, fault: Fault) {
        self.hub.fault(fault);
    }

    /// Reads a fault as the command line does and puts it into effect when its trigger says, counted from now.
    ///
    /// # Errors
    /// If the text is not a fault.
    pub fn order(&self, spec: &str) -> Result<(), BadFault> {
        self.schedule([Step::parse(spec)?]);
        Ok(())
    }

    /// Plays faults, each when its trigger says, counted from now.
    pub fn schedule(&self, steps: impl IntoIterator<Item = Step>) {
        self.hub.schedule(steps.into_iter().collect());
    }

    /// Ends every open channel's body, as a server does that closes it.
    pub fn drop_channels(&self) {
        self.fault(Fault::Drop { broken: false });
    }

    /// Breaks every open channel's connection in the middle of its body.
    pub fn break_channels(&self) {
        self.fault(Fault::Drop { broken: true });
    }

    /// Half-open: the open channels stay but deliver nothing, until cleared or replaced.
    pub fn go_silent(&self) {
        self.fault(Fault::Silent);
    }

    /// Closes each of the next channels right after its hello; 0 means until cleared.
    pub fn close_channels(&self, times: u32) {
        self.fault(Fault::CloseChannels { times });
    }

    /// Refuses connections or calls for a time, or until cleared.
    pub fn refuse(&self, what: Refused, lasting: Option<Duration>) {
        self.fault(Fault::Refuse { what, lasting });
    }

    /// Holds calls back before they are looked at.
    pub fn delay(&self, aim: Aim, by: Duration) {
        self.fault(Fault::Delay { aim, by });
    }

    /// Answers calls as told, unapplied.
    pub fn answer(&self, aim: Aim, answer: Answer) {
        self.fault(Fault::Answer { aim, answer });
    }

    /// Applies calls, then cuts the connection before the reply.
    pub fn lose_reply(&self, aim: Aim) {
        self.fault(Fault::LoseReply { aim });
    }

    /// Cuts the next upload's connection with this line, counted from 1: applied first, or lost.
    pub fn break_upload(&self, line: u64, applied: bool) {
        self.fault(Fault::BreakUpload { bytes: None, lines: Some(line), applied, skip: 0, times: 1 });
    }

    /// Looks at the next uploads only once they have come whole, as if a proxy collected them; 0 means until cleared.
    pub fn hold_uploads(&self, times: u32) {
        self.fault(Fault::HoldUpload { times });
    }

    /// Loses this line of the next upload, counted from 1, so that the one after it leaves a gap.
    pub fn lose_line(&self, line: u64) {
        self.fault(Fault::LoseLine { line, times: 1 });
    }

    /// Does not send the next `received` events; 0 means until cleared.
    pub fn lose_received(&self, times: u32) {
        self.fault(Fault::LoseReceived { times });
    }

    /// Leaves the session id out of the next register replies; 0 means until cleared.
    pub fn hide_session_id(&self, times: u32) {
        self.fault(Fault::NoSessionId { times });
    }

    /// Forgets all sessions and tasks; rows stay, inactive.
    pub fn forget_sessions(&self) {
        self.fault(Fault::Forget);
    }

    /// Forgets all sessions and tasks, and cuts every connection.
    pub fn restart(&self) {
        self.fault(Fault::Restart);
    }

    /// Delivers the next tasks twice; 0 means until cleared.
    pub fn deliver_twice(&self, times: u32) {
        self.fault(Fault::Twice { times });
    }

    /// Sends the next tasks only after the event that follows each, or a second later; 0 means until cleared.
    pub fn overtake(&self, times: u32) {
        self.fault(Fault::Overtake { times });
    }

    /// Sends a task of one's own making on every channel; its results are accepted if it has a `taskId`.
    pub fn send_task(&self, json: impl Into<String>) {
        self.fault(Fault::Task { json: json.into() });
    }

    /// Sends raw text on every channel; `\n` and `\r` may be written as escapes.
    pub fn send_raw(&self, frame: impl Into<String>) {
        self.fault(Fault::Garbage { frame: Some(frame.into()) });
    }

    /// Sends bytes that are no SSE on every channel.
    pub fn send_garbage(&self) {
        self.fault(Fault::Garbage { frame: None });
    }

    /// Sends `cancel` for a task, under way or not; its caller gets its end.
    pub fn cancel(&self, task: impl Into<String>) {
        self.fault(Fault::Cancel { task: Some(task.into()) });
    }

    /// Ends every fault that lasts.
    pub fn clear_faults(&self) {
        self.fault(Fault::Clear);
    }
}
