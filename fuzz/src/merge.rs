//! The pending output of a stream: whatever is pushed and whenever it is sent, its meaning stays the same, within the limit.

use arbitrary::{Arbitrary, Unstructured};
use bytes::Bytes;

use crate::{
    domain::{Delta, ToolCallDelta, Usage},
    openai::{ChunkError, Pushed, ChunkEnvelope, StreamBuffer},
    said::said,
};

/// One stream.
#[derive(Arbitrary, Debug)]
pub struct Script {
    limit: u16,
    steps: Vec<Step>,
    usage: Option<(u16, u16)>,
    include_usage: bool,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Chunk(Chunk),
    /// The same chunk again and again, as in a stream in full flow.
    Run(Chunk, u8),
    Raw(Vec<u8>),
    Delta {
        content: String,
        reasoning: String,
        call: Option<(u8, String)>,
        finish: bool,
    },
    Pop,
}

/// A chunk of the kinds that providers send, and of kinds near them.
#[derive(Arbitrary, Clone, Debug)]
struct Chunk {
    index: u8,
    delta: Vec<Member>,
    logprobs: Logprobs,
    finish: Finish,
    top: Top,
}

#[derive(Arbitrary, Clone, Debug)]
enum Member {
    Content(Text),
    Reasoning(Text),
    Refusal(Text),
    NullContent,
    Role,
    Arguments(u8, Text),
    Call(u8),
    Future(u8),
}

#[derive(Arbitrary, Clone, Debug)]
enum Logprobs {
    Absent,
    Null,
    Content(u8),
    Both,
}

#[derive(Arbitrary, Clone, Debug)]
enum Finish {
    Absent,
    Null,
    Stop,
}

#[derive(Arbitrary, Clone, Debug)]
enum Top {
    Plain,
    Created(u8),
    Usage,
    Error,
    TwoChoices,
    NoChoice,
}

/// A JSON string's inside, as it is written.
#[derive(Clone, Debug)]
struct Text(String);

impl<'a> Arbitrary<'a> for Text {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        const PIECES: [&str; 10] =
            ["a", "tok ", "é", "\\n", "\\\"", "\\ud83d", "\\ude00", "\\u0041", "\\\\", "]}"];
        let pieces = (0..u.int_in_range(0..=3)?).map(|_| u.choose(&PIECES).copied());
        Ok(Self(pieces.collect::<Result<_, _>>()?))
    }
}

impl Chunk {
    fn json(&self) -> String {
        let choice = format!(
            r#"{{"index":{},"delta":{{{}}}{}{}}}"#,
            self.index % 4,
            self.delta.iter().map(Member::json).collect::<Vec<_>>().join(","),
            match self.logprobs {
                Logprobs::Absent => String::new(),
                Logprobs::Null => r#","logprobs":null"#.to_owned(),
                Logprobs::Content(n) => format!(r#","logprobs":{{"content":[{{"logprob":-{n}.50}}]}}"#),
                Logprobs::Both => r#","logprobs":{"refusal":[1], "content":null}"#.to_owned(),
            },
            match self.finish {
                Finish::Absent => "",
                Finish::Null => r#","finish_reason":null"#,
                Finish::Stop => r#","finish_reason":"stop""#,
            }
        );
        match self.top {
            Top::Plain => format!(r#"{{"id":"c","choices":[{choice}]}}"#),
            Top::Created(at) => format!(r#"{{"created":{at},"choices":[{choice}]}}"#),
            Top::Usage => format!(r#"{{"id":"c","choices":[{choice}],"usage":{{"prompt_tokens":1}}}}"#),
            Top::Error => r#"{"error":{"message":"overloaded"}}"#.to_owned(),
            Top::TwoChoices => format!(r#"{{"id":"c","choices":[{choice},{choice}]}}"#),
            Top::NoChoice => r#"{"id":"c","choices":[]}"#.to_owned(),
        }
    }
}

impl Member {
    fn json(&self) -> String {
        match self {
            Self::Content(text) => format!(r#""content":"{}""#, text.0),
            Self::Reasoning(text) => format!(r#""reasoning_content":"{}""#, text.0),
            Self::Refusal(text) => format!(r#""refusal":"{}""#, text.0),
            Self::NullContent => r#""content":null"#.to_owned(),
            Self::Role => r#""role":"assistant""#.to_owned(),
            Self::Arguments(n, text) => {
                format!(r#""tool_calls":[{{"index":{},"function":{{"arguments":"{}"}}}}]"#, n % 3, text.0)
            }
            Self::Call(n) => {
                format!(
                    r#""tool_calls":[{{"index":{},"id":"i","function":{{"name":"f","arguments":""}}}}]"#,
                    n % 3
                )
            }
            Self::Future(n) => format!(r#""future":{{"a":[{n}.50]}}"#),
        }
    }
}

/// Buffers that get the same: two that are read in the two ways there are, and one that is read at once, where nothing
/// ever merges.
struct Run {
    plain: StreamBuffer,
    escaped: StreamBuffer,
    eager: StreamBuffer,
    limit: usize,
    sent: Vec<String>,
    unmerged: Vec<String>,
}

/// Runs one stream.
pub fn check(script: Script) {
    let limit = usize::from(script.limit);
    let stamp = ChunkEnvelope { id: "s".to_owned(), model: "m".to_owned(), created: 1 };
    let buffer = |limit| StreamBuffer::new(limit, stamp.clone());
    let (plain, escaped, eager) = (buffer(limit), buffer(limit), buffer(usize::MAX));
    let mut run = Run { plain, escaped, eager, limit, sent: Vec::new(), unmerged: Vec::new() };
    let whole = script.steps.iter().try_for_each(|step| run.step(step)).is_ok();
    let ended = whole && run.finish(&script);
    while run.pop() {}
    assert_eq!((run.plain.pending_bytes(), run.plain.pending_parts()), (0, 0));
    if ended || !whole {
        assert_eq!(said(&run.sent), said(&run.unmerged));
        assert_eq!(run.plain.meta(), run.eager.meta());
    }
}

impl Run {
    /// The next step; an error ends a stream.
    fn step(&mut self, step: &Step) -> Result<(), ChunkError> {
        match step {
            Step::Chunk(chunk) => self.push_raw(chunk.json().into()),
            Step::Run(chunk, times) => (0..times % 16).try_for_each(|_| self.push_raw(chunk.json().into())),
            Step::Raw(bytes) => self.push_raw(bytes.clone().into()),
            Step::Delta { content, reasoning, call, finish } => {
                let delta = Delta {
                    content: content.clone(),
                    reasoning: reasoning.clone(),
                    tool_calls: call.iter().map(|(index, arguments)| tool_call(*index, arguments)).collect(),
                    finish_reason: if *finish { "stop".to_owned() } else { String::new() },
                };
                self.push(|buffer| buffer.push_delta(&delta)).map(drop)
            }
            Step::Pop => {
                self.pop();
                Ok(())
            }
        }
    }

    fn push_raw(&mut self, chunk: Bytes) -> Result<(), ChunkError> {
        let alone = self.push(|buffer| buffer.push_raw(chunk.clone()))?;
        assert!(alone.is_none_or(|alone| alone == chunk), "a chunk alone is not changed");
        Ok(())
    }

    /// Pushes the same into each; returns what is sent for it alone.
    fn push(
        &mut self,
        mut push: impl FnMut(&mut StreamBuffer) -> Result<Pushed, ChunkError>,
    ) -> Result<Option<Bytes>, ChunkError> {
        let (before, parts) = (self.plain.pending_bytes(), self.plain.pending_parts());
        let pushed = push(&mut self.plain);
        assert_eq!(pushed, push(&mut self.escaped));
        let after = (self.plain.pending_bytes(), self.plain.pending_parts());
        let pushed = match pushed {
            Ok(pushed) => pushed,
            Err(error) => {
                assert_eq!(after, (before, parts), "what is refused is not held");
                return Err(error);
            }
        };
        assert_eq!(after.1 - parts, usize::from(pushed == Pushed::Queued));
        assert!(parts == 0 || after.0 == before || after.0 <= self.limit, "over the limit");
        push(&mut self.eager).expect("what one takes, all take");
        let alone = self.eager.pop();
        let text = alone.iter().map(|chunk| String::from_utf8(chunk.to_vec()).expect("text"));
        self.unmerged.extend(text);
        Ok(alone)
    }

    /// Whether the stream has a good end.
    fn finish(&mut self, script: &Script) -> bool {
        let usage = script.usage.map(|(input, output)| Usage::new(Some(input.into()), Some(output.into())));
        let ended = self.plain.finish(usage, script.include_usage);
        assert_eq!(ended, self.escaped.finish(usage, script.include_usage));
        if ended.is_ok() {
            assert_eq!(self.eager.finish(usage, script.include_usage), ended);
            while let Some(chunk) = self.eager.pop() {
                self.unmerged.push(String::from_utf8(chunk.to_vec()).expect("text"));
            }
        }
        ended.is_ok()
    }

    /// Sends the next part; the other way of reading gives the same bytes.
    fn pop(&mut self) -> bool {
        let (plain, escaped) = (self.plain.pop(), self.escaped.pop_escaped(b"\"", b"\""));
        assert_eq!(plain.is_some(), escaped.is_some());
        let (Some(plain), Some(escaped)) = (plain, escaped) else { return false };
        let text = String::from_utf8(plain.to_vec()).expect("text");
        assert_eq!(serde_json::from_slice::<String>(&escaped).ok().as_ref(), Some(&text));
        self.sent.push(text);
        true
    }
}

fn tool_call(index: u8, arguments: &str) -> ToolCallDelta {
    let (id, name) = ("i".to_owned(), "f".to_owned());
    ToolCallDelta { index: (index % 3).into(), id, name, arguments: arguments.to_owned() }
}
