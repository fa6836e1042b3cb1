//! One chunk, read once: what it says, and whether it may merge with its neighbours.
//!
//! The agent reads every raw chunk like this, and the provider host reads a server's chunks with the same
//! code, so that the two never differ in what they take for an end or an error.

use super::{
    errors::ErrorSigns,
    layout::{ARGUMENTS, ChunkLayout, Field, LOG_NAMES, LOGS, TEXTS},
};
use crate::json::{
    Malformed,
    scan::{self, Scanner, Span, number},
};

/// How many choices' ends are read from one chunk and kept for one answer: OpenAI's own limit for `n`.
pub(super) const MAX_CHOICES: usize = 128;

/// What one chunk says.
#[derive(Default)]
pub(super) struct Reading {
    /// Set if the chunk may merge.
    pub(super) layout: Option<ChunkLayout>,
    pub(super) id: Option<Span>,
    pub(super) model: Option<Span>,
    /// The value of `usage`, if it is not null.
    pub(super) usage: Option<Span>,
    /// Whether it is an error, not a piece of an answer.
    pub(super) is_error: bool,
    /// Whether it contains a piece of the answer.
    pub(super) token: bool,
    /// Whether it has choices at all; a list without any counts as none.
    pub(super) any_choice: bool,
    /// The choices of which it has a piece.
    pub(super) begun: Choices,
    /// The choices that end here, and why.
    pub(super) finishes: Vec<(u32, Span)>,
}

/// A set of choices, by their index; those beyond `MAX_CHOICES` are not kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choices(u128);

const _: () = assert!(MAX_CHOICES <= u128::BITS as usize, "`Choices` keeps a bit for each");

impl Choices {
    /// Adds one.
    pub fn insert(&mut self, index: u32) {
        self.0 |= 1_u128.checked_shl(index).unwrap_or_default();
    }

    /// Adds all of another set.
    pub fn add(&mut self, others: Self) {
        self.0 |= others.0;
    }

    /// Whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether all of another set are in it.
    pub fn contains(self, others: Self) -> bool {
        others.0 & !self.0 == 0
    }
}

/// Reads one chunk.
pub(super) fn read(chunk: &[u8]) -> Result<Reading, Malformed> {
    let mut reader = Reader::default();
    scan::object(chunk, |scan, key| reader.top(scan, key))?;
    Ok(reader.finish())
}

/// A bit for each member that may occur once in the whole chunk. A second occurrence (in an object, a choice, a tool call) makes the chunk
/// a barrier.
mod once {
    pub(super) const CHOICES: u32 = 1;
    pub(super) const CREATED: u32 = 1 << 1;
    pub(super) const INDEX: u32 = 1 << 2;
    pub(super) const DELTA: u32 = 1 << 3;
    pub(super) const FINISH: u32 = 1 << 4;
    pub(super) const LOGPROBS: u32 = 1 << 5;
    pub(super) const ROLE: u32 = 1 << 6;
    pub(super) const TOOL_CALLS: u32 = 1 << 7;
    pub(super) const CALL: u32 = 1 << 8;
    pub(super) const CALL_INDEX: u32 = 1 << 9;
    pub(super) const FUNCTION: u32 = 1 << 10;
    pub(super) const ARGUMENTS: u32 = 1 << 11;
    pub(super) const CHOICE: u32 = 1 << 12;
    pub(super) const TEXT: u32 = 1 << 13;
    pub(super) const LOG: u32 = 1 << 17;
}

#[derive(Default)]
struct Reader {
    reading: Reading,
    layout: ChunkLayout,
    seen: u32,
    barrier: bool,
    created: Span,
    nulls: usize,
    /// Why the present choice ends; its index may come later.
    finish: Option<Span>,
    errors: ErrorSigns,
}

type Step = Result<(), Malformed>;

impl Reader {
    fn finish(mut self) -> Reading {
        self.reading.is_error = self.errors.is_error(self.reading.any_choice, self.reading.usage.is_some());
        let has = |bits: u32| self.seen & bits == bits;
        let calls = has(once::CALL);
        let whole_call = !calls || has(once::CALL_INDEX | once::ARGUMENTS);
        if has(once::INDEX | once::DELTA) && whole_call && !self.barrier {
            self.layout.variable = [self.created, self.layout.delta, self.layout.logprobs];
            self.layout.variable.sort_unstable_by_key(|hole| hole.start);
            self.reading.layout = Some(self.layout);
        }
        self.reading
    }

    fn once(&mut self, bit: u32) {
        self.barrier |= self.seen & bit != 0;
        self.seen |= bit;
    }

    fn top(&mut self, scan: &mut Scanner<'_>, key: Span) -> Step {
        match scan.of(key) {
            b"choices" => {
                self.once(once::CHOICES);
                return self.elements(scan, Self::choice);
            }
            b"created" => {
                self.once(once::CREATED);
                self.created = scan.skip()?;
            }
            b"id" => self.reading.id = string(scan)?,
            b"model" => self.reading.model = string(scan)?,
            b"usage" => {
                self.reading.usage = not_null(scan)?.or(self.reading.usage);
                self.barrier |= self.reading.usage.is_some();
            }
            other => {
                self.barrier |= other.contains(&b'\\');
                self.errors.member(scan, key)?;
            }
        }
        Ok(())
    }

    /// Reads an array; anything else in its place is a barrier.
    fn elements(&mut self, scan: &mut Scanner<'_>, each: fn(&mut Self, &mut Scanner<'_>) -> Step) -> Step {
        if scan.peek()? != b'[' {
            self.barrier = true;
            return scan.skip().map(drop);
        }
        scan.array(|scan| each(self, scan)).map(drop)
    }

    /// Reads an object; anything else in its place is a barrier.
    fn members(
        &mut self,
        scan: &mut Scanner<'_>,
        each: fn(&mut Self, &mut Scanner<'_>, Span) -> Step,
    ) -> Result<Span, Malformed> {
        if scan.peek()? != b'{' {
            self.barrier = true;
            return scan.skip();
        }
        scan.object(|scan, key| each(self, scan, key))
    }

    fn choice(&mut self, scan: &mut Scanner<'_>) -> Step {
        self.once(once::CHOICE);
        self.layout.index = 0;
        self.reading.any_choice = true;
        self.members(scan, Self::choice_member)?;
        self.reading.begun.insert(self.layout.index);
        if let Some(reason) = self.finish.take()
            && self.reading.finishes.len() < MAX_CHOICES
        {
            self.reading.finishes.push((self.layout.index, reason));
        }
        Ok(())
    }

    fn choice_member(&mut self, scan: &mut Scanner<'_>, key: Span) -> Step {
        match scan.of(key) {
            b"index" => {
                self.once(once::INDEX);
                self.layout.index = self.index(scan)?;
            }
            b"delta" => {
                self.once(once::DELTA);
                self.layout.delta = self.members(scan, Self::delta_member)?;
            }
            b"finish_reason" => {
                self.once(once::FINISH);
                self.finish = reason(scan)?;
                self.barrier |= self.finish.is_some();
            }
            b"logprobs" => {
                self.once(once::LOGPROBS);
                self.layout.logprobs = self.logprobs(scan)?;
            }
            other => self.barrier |= not_null(scan)?.is_some() || other.contains(&b'\\'),
        }
        Ok(())
    }

    fn delta_member(&mut self, scan: &mut Scanner<'_>, key: Span) -> Step {
        let name = scan.of(key);
        if let Some(text) = TEXTS.iter().position(|text| *text == name) {
            self.once(once::TEXT << text);
            self.layout.fields[text] = self.text(scan)?;
            return Ok(());
        }
        match name {
            b"role" => self.role(scan, key),
            b"tool_calls" => self.tool_calls(scan),
            _ if scan.peek()? == b'n' => self.null_member(scan, key),
            _ => {
                self.barrier = true;
                let value = scan.skip()?;
                self.reading.token |= !matches!(scan.of(value), b"\"\"" | b"[]" | b"{}");
                Ok(())
            }
        }
    }

    fn role(&mut self, scan: &mut Scanner<'_>, key: Span) -> Step {
        self.once(once::ROLE);
        match scan.peek()? {
            b'"' => self.layout.role = scan.skip()?,
            b'n' => self.null_member(scan, key)?,
            _ => {
                self.barrier = true;
                scan.skip()?;
            }
        }
        Ok(())
    }

    fn tool_calls(&mut self, scan: &mut Scanner<'_>) -> Step {
        self.once(once::TOOL_CALLS);
        if scan.peek()? == b'n' {
            self.layout.fields[ARGUMENTS] = Field::Null;
            return scan.skip().map(drop);
        }
        self.elements(scan, Self::call)?;
        self.barrier |= self.seen & once::CALL == 0;
        Ok(())
    }

    /// A null carries no information, so it does not keep chunks from merging, as long as both have it.
    fn null_member(&mut self, scan: &mut Scanner<'_>, key: Span) -> Step {
        scan.skip()?;
        match self.layout.nulls.get_mut(self.nulls) {
            Some(slot) if !key.is_empty() && !scan.of(key).contains(&b'\\') => *slot = key,
            _ => self.barrier = true,
        }
        self.nulls += 1;
        Ok(())
    }

    fn text(&mut self, scan: &mut Scanner<'_>) -> Result<Field, Malformed> {
        Ok(match scan.peek()? {
            b'"' => {
                let span = scan.string()?;
                self.reading.token |= !span.is_empty();
                Field::At(span)
            }
            b'n' => scan.skip().map(|_| Field::Null)?,
            _ => {
                self.barrier = true;
                scan.skip().map(|_| Field::Absent)?
            }
        })
    }

    fn call(&mut self, scan: &mut Scanner<'_>) -> Step {
        self.once(once::CALL);
        self.reading.token = true;
        self.members(scan, Self::call_member).map(drop)
    }

    fn call_member(&mut self, scan: &mut Scanner<'_>, key: Span) -> Step {
        match scan.of(key) {
            b"index" => {
                self.once(once::CALL_INDEX);
                self.layout.call = Some(self.index(scan)?);
            }
            b"function" => {
                self.once(once::FUNCTION);
                self.members(scan, Self::function_member)?;
            }
            _ => {
                self.barrier = true;
                scan.skip()?;
            }
        }
        Ok(())
    }

    fn function_member(&mut self, scan: &mut Scanner<'_>, key: Span) -> Step {
        if scan.of(key) == b"arguments" && scan.peek()? == b'"' {
            self.once(once::ARGUMENTS);
            self.layout.fields[ARGUMENTS] = Field::At(scan.string()?);
        } else {
            self.barrier = true;
            scan.skip()?;
        }
        Ok(())
    }

    fn logprobs(&mut self, scan: &mut Scanner<'_>) -> Result<Span, Malformed> {
        if scan.peek()? == b'n' {
            return scan.skip();
        }
        let before = self.seen;
        let span = self.members(scan, Self::log)?;
        self.barrier |= self.seen == before;
        Ok(span)
    }

    fn log(&mut self, scan: &mut Scanner<'_>, key: Span) -> Step {
        let log = LOG_NAMES.iter().position(|name| *name == scan.of(key));
        match (log, scan.peek()?) {
            (Some(log), first @ (b'[' | b'n')) => {
                self.once(once::LOG << log);
                self.layout.fields[LOGS + log] = if first == b'n' {
                    scan.skip().map(|_| Field::Null)?
                } else {
                    Field::At(scan.array(|scan| scan.skip().map(drop))?)
                };
            }
            _ => {
                self.barrier = true;
                scan.skip()?;
            }
        }
        Ok(())
    }

    /// A plain index; anything else is a barrier.
    fn index(&mut self, scan: &mut Scanner<'_>) -> Result<u32, Malformed> {
        let span = scan.skip()?;
        let index = number(scan.of(span));
        self.barrier |= index.is_none();
        Ok(index.unwrap_or(0))
    }
}

/// Why a choice ends.
pub(super) fn reason(scan: &mut Scanner<'_>) -> Result<Option<Span>, Malformed> {
    let quoted = scan.peek()? == b'"';
    let value = scan.skip()?;
    let inner = Span { start: value.start + 1, end: value.end.saturating_sub(1) };
    Ok((quoted && !is_no_reason(scan.of(value))).then_some(inner))
}

/// Whether the value of a `finish_reason` says that there is none. Some servers write an empty text, or the text "null", for what OpenAI
/// writes as null.
pub(super) fn is_no_reason(value: &[u8]) -> bool {
    matches!(value, b"null" | b"\"\"" | b"\"null\"")
}

/// The text of a string; `None` for any other value.
pub(super) fn string(scan: &mut Scanner<'_>) -> Result<Option<Span>, Malformed> {
    if scan.peek()? == b'"' { scan.string().map(Some) } else { scan.skip().map(|_| None) }
}

/// The value, unless it is null.
fn not_null(scan: &mut Scanner<'_>) -> Result<Option<Span>, Malformed> {
    let null = scan.peek()? == b'n';
    scan.skip().map(|span| (!null).then_some(span))
}
