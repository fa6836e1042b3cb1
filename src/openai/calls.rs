//! The indexes of the tool calls in plain deltas.
//!
//! Many programs number each call 0, or leave the index out, which is the same on the wire. Clients join what has one index, so the
//! arguments of two calls would become one text: another id begins another call.

use std::{
    borrow::Cow,
    hash::{DefaultHasher, Hash as _, Hasher as _},
};

use crate::domain::{Delta, ToolCallDelta};

/// How many calls of one answer are told apart; OpenAI allows 128 tools.
const MAX_CALLS: usize = 128;

/// The tool calls of one answer so far.
#[derive(Debug, Default)]
pub(super) struct CallIndexes {
    calls: Vec<Call>,
}

#[derive(Debug)]
struct Call {
    /// The index that its pieces name.
    named: u32,
    /// The index that it has in the answer.
    given: u32,
    /// A hash of its id; `None` as long as no piece has one.
    id: Option<u64>,
}

impl CallIndexes {
    /// Whether there is any call.
    pub(super) fn any(&self) -> bool {
        !self.calls.is_empty()
    }

    /// The same piece with the indexes of its calls.
    pub(super) fn renumber<'a>(&mut self, delta: &'a Delta) -> Cow<'a, Delta> {
        if delta.tool_calls.is_empty() {
            return Cow::Borrowed(delta);
        }
        let tool_calls = delta.tool_calls.iter();
        let tool_calls =
            tool_calls.map(|piece| ToolCallDelta { index: self.index_of(piece), ..piece.clone() }).collect();
        Cow::Owned(Delta { tool_calls, ..delta.clone() })
    }

    fn index_of(&mut self, piece: &ToolCallDelta) -> u32 {
        let id = hash(&piece.id);
        let continued =
            self.calls.iter_mut().rev().find(|call| {
                call.named == piece.index && (id.is_none() || call.id.is_none() || call.id == id)
            });
        if let Some(call) = continued {
            call.id = call.id.or(id);
            return call.given;
        }
        let is_free = self.calls.iter().all(|call| call.given != piece.index);
        let next = self.calls.iter().map(|call| call.given.saturating_add(1)).max().unwrap_or_default();
        let given = if is_free { piece.index } else { next };
        if self.calls.len() < MAX_CALLS {
            self.calls.push(Call { named: piece.index, given, id });
        }
        given
    }
}

fn hash(id: &str) -> Option<u64> {
    let mut hasher = DefaultHasher::new();
    id.hash(&mut hasher);
    (!id.is_empty()).then(|| hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn indexes(pieces: &[(u32, &str)]) -> Vec<u32> {
        let mut calls = CallIndexes::default();
        let piece = |(index, id): &(u32, &str)| ToolCallDelta {
            index: *index,
            id: (*id).to_owned(),
            ..ToolCallDelta::default()
        };
        pieces.iter().map(|named| calls.index_of(&piece(named))).collect()
    }

    #[test]
    fn another_id_under_one_index_is_another_call() {
        assert_eq!(indexes(&[(0, "a"), (0, ""), (0, "b"), (0, ""), (0, "a")]), [0, 0, 1, 1, 0]);
        assert_eq!(indexes(&[(0, "a"), (0, "b"), (1, "c"), (1, "")]), [0, 1, 2, 2]);
    }

    #[test]
    fn calls_that_are_numbered_keep_their_numbers() {
        assert_eq!(indexes(&[(0, "a"), (1, "b"), (0, ""), (1, ""), (3, "")]), [0, 1, 0, 1, 3]);
    }
}
