//! Parts that mcpd got after it had ended their task or said that nobody waits: whose fault was it?

use fake_mcpd::{Entry, FakeMcpd, Rule, Violation};

/// The breaches found so far, each with all that mcpd's journal said of its task at once: it forgets soon.
#[derive(Debug, Default)]
pub struct AfterEnd {
    looked_at: usize,
    pub found: Vec<(Violation, Vec<Entry>)>,
}

impl AfterEnd {
    /// Looks at what was found since the last look, and prints it.
    pub fn watch(&mut self, mcpd: &FakeMcpd) {
        let violations = mcpd.violations();
        let new = violations.iter().skip(self.looked_at).filter(|v| v.rule == Rule::ResultAfterEnd);
        for violation in new {
            let of_it = |entry: &Entry| entry.task.as_ref() == Some(&violation.subject);
            let told: Vec<_> = mcpd.journal().into_iter().filter(of_it).collect();
            println!("{}", story(violation, &told));
            self.found.push((violation.clone(), told));
        }
        self.looked_at = violations.len();
    }
}

/// The breach and its task's story, a line an entry.
fn story(violation: &Violation, told: &[Entry]) -> String {
    let head = format!("{} ms, task {}: {}\n", violation.at_ms, violation.subject, violation.detail);
    let line = |entry: &Entry| {
        let (key, note) = (entry.key.as_deref().unwrap_or("-"), entry.note.as_deref().unwrap_or("-"));
        format!(
            "  {} {} ms {:?} {key} {:?} {note} {}\n",
            entry.seq,
            entry.at_ms,
            entry.kind,
            entry.status,
            entry.text()
        )
    };
    head + &told.iter().map(line).collect::<String>()
}
