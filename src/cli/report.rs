//! A list of findings, as `doctor` and `check-mcpd` print it: one line per finding, and what to do.

use std::io;

use clap::ValueEnum;
use serde::Serialize;

use super::{
    Stop,
    output::{self, Look},
};
use crate::domain::{Printable, Reason, counted};

/// How a report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A line a finding
    Text,
    /// A document for scripts: {"ok", "findings": [{"subject", "result", "message", "advice"}]}
    Json,
}

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// It works, but somebody should look into it.
    Warning,
    /// It does not work.
    Failure,
    /// It could not be checked.
    Skipped,
}

impl Level {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failure => "FAILURE",
            Self::Skipped => "skipped",
        }
    }
}

/// One line of a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked.
    pub subject: String,
    /// The result.
    pub result: Level,
    /// What was found.
    pub message: String,
    /// What to do; `None` if there is nothing to do.
    pub advice: Option<String>,
}

impl Finding {
    /// As it should be.
    pub fn ok(subject: &str, message: impl Into<String>) -> Self {
        Self { subject: subject.into(), result: Level::Ok, message: message.into(), advice: None }
    }

    /// It works, but somebody should look into it.
    pub fn warning(subject: &str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { result: Level::Warning, advice: Some(advice.into()), ..Self::ok(subject, message) }
    }

    /// It does not work.
    pub fn failure(subject: &str, message: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { result: Level::Failure, advice: Some(advice.into()), ..Self::ok(subject, message) }
    }

    /// It could not be checked; the message says why.
    pub fn skipped(subject: &str, message: impl Into<String>) -> Self {
        Self { result: Level::Skipped, ..Self::ok(subject, message) }
    }

    /// A failure whose sentence says "what: what to do" already.
    pub fn failed(subject: &str, sentence: &str) -> Self {
        let reason = Reason::of_sentence(sentence).or_advice("see the message");
        Self::failure(subject, reason.what, reason.advice)
    }
}

/// Findings in the order in which they were made. With [`Format::Text`] each is printed at once, because some checks take seconds.
#[derive(Debug)]
pub struct Report {
    findings: Vec<Finding>,
    format: Format,
}

#[derive(Serialize)]
struct Document<'a> {
    ok: bool,
    findings: &'a [Finding],
}

impl Report {
    /// An empty one.
    pub fn new(format: Format) -> Self {
        Self { findings: Vec::new(), format }
    }

    /// Takes a finding.
    pub fn add(&mut self, finding: Finding) -> io::Result<()> {
        if self.format == Format::Text {
            output::print(&line(&finding, Look::of_stdout()))?;
        }
        self.findings.push(finding);
        Ok(())
    }

    /// Takes some findings.
    pub fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) -> io::Result<()> {
        findings.into_iter().try_for_each(|finding| self.add(finding))
    }

    /// The findings so far.
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Ends the report; a failure in it is a failure of the command.
    pub fn end(self) -> Result<(), Stop> {
        let ok = self.count(Level::Failure) == 0;
        match self.format {
            Format::Json => output::print_json(&Document { ok, findings: &self.findings })?,
            Format::Text => output::print(&self.sum())?,
        }
        if ok { Ok(()) } else { Err(Stop::Reported) }
    }

    fn sum(&self) -> String {
        format!(
            "{} ok, {}, {}, {} skipped\n",
            self.count(Level::Ok),
            counted(self.count(Level::Warning), "warning"),
            counted(self.count(Level::Failure), "failure"),
            self.count(Level::Skipped)
        )
    }

    fn count(&self, level: Level) -> usize {
        self.findings.iter().filter(|finding| finding.result == level).count()
    }
}

fn line(finding: &Finding, look: Look) -> String {
    let Finding { subject, result, message, advice } = finding;
    let word = result.word();
    let gap = " ".repeat(9 - word.len());
    let mut text = format!("{}{gap}{}: {}\n", look.paint(word), Printable(subject), Printable(message));
    if let Some(advice) = advice {
        text += &format!("{:<8} -> {}\n", "", Printable(advice));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_and_what_to_do() {
        let finding = Finding::failed("socket", "nobody serves /x: start it with `mcprelay run`");
        assert_eq!(
            line(&finding, Look::default()),
            "FAILURE  socket: nobody serves /x\n         -> start it with `mcprelay run`\n"
        );
        assert_eq!(line(&Finding::ok("home", "fine"), Look::default()), "ok       home: fine\n");
    }

    #[test]
    fn only_a_failure_fails_the_command() {
        let mut report = Report::new(Format::Json);
        report
            .extend([Finding::ok("a", ""), Finding::warning("b", "", ""), Finding::skipped("c", "")])
            .expect("adds");
        assert_eq!(report.sum(), "1 ok, 1 warning, 0 failures, 1 skipped\n");
        assert_eq!(report.end(), Ok(()));
        let mut report = Report::new(Format::Json);
        report.add(Finding::failure("d", "", "")).expect("adds");
        assert_eq!(report.end(), Err(Stop::Reported));
    }
}
