//! W3C trace context: a caller's trace is continued, or a new one begun if there is none.

/// The place of one inference in its trace: fake-mcpd's own span, and whose child it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TraceContext {
    trace_id: u128,
    span_id: u64,
    flags: u8,
    continued: bool,
}

/// Set on traces that we begin: somebody wants to see them.
const SAMPLED: u8 = 1;

impl TraceContext {
    /// Continues a valid `traceparent` with a span of our own, or begins a new trace.
    pub(crate) fn new(traceparent: Option<&str>, random: &mut fastrand::Rng) -> Self {
        let span_id = random.u64(1..);
        match traceparent.and_then(parse) {
            Some((trace_id, flags)) => Self { trace_id, span_id, flags, continued: true },
            None => Self { trace_id: random.u128(1..), span_id, flags: SAMPLED, continued: false },
        }
    }

    /// Whether the trace is the caller's; only then its `tracestate` means anything.
    pub(crate) fn is_continued(&self) -> bool {
        self.continued
    }

    /// The header and task field.
    pub(crate) fn traceparent(&self) -> String {
        format!("00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

/// Trace id and flags; `None` for what the W3C text calls invalid. Versions after 00 may append fields.
fn parse(header: &str) -> Option<(u128, u8)> {
    let mut fields = header.split('-');
    let version = hex(fields.next()?, 2)?;
    let trace_id = hex(fields.next()?, 32)?;
    let parent_id = hex(fields.next()?, 16)?;
    let flags = hex(fields.next()?, 2)?;
    let known = version != 0xff && (version != 0 || fields.next().is_none());
    (known && trace_id != 0 && parent_id != 0).then_some((trace_id, flags as u8))
}

fn hex(text: &str, length: usize) -> Option<u128> {
    let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let valid = text.len() == length && text.bytes().all(lower);
    valid.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_valid_parent_keeps_its_trace_and_flags_under_a_new_span() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
        let ours = TraceContext::new(Some(parent), &mut fastrand::Rng::with_seed(1)).traceparent();
        assert!(ours.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"), "{ours}");
        assert!(ours.ends_with("-00") && !ours.contains("00f067aa0ba902b7"), "{ours}");
    }

    #[test]
    fn an_invalid_parent_begins_a_new_sampled_trace() {
        for parent in [
            "",
            "00-0-0-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            let ours = TraceContext::new(Some(parent), &mut fastrand::Rng::with_seed(1)).traceparent();
            assert!(
                !ours.to_lowercase().contains("4bf92f35") && ours.ends_with("-01"),
                "{parent} gave {ours}"
            );
        }
    }
}
