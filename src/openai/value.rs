//! A JSON value that grows piece by piece, for an answer that is gathered from chunks.
//!
//! Strings and arrays are concatenated, objects are merged member by member, and of anything else the last value that is not null
//! remains; unknown members therefore lose nothing. Names (`id`, `type`, `role`, `name`) are not concatenated: the last one remains.
//! Everything is kept as it was written: strings in their escaped form, numbers digit for digit.

use std::collections::BTreeMap;

use crate::json::{
    Malformed,
    scan::{self, Scanner, number},
    text::{around, member},
};

/// What a member costs besides its bytes: a name, a value, a place in a map.
pub(super) const MEMBER_COST: usize = 128;

/// A value that grows.
#[derive(Debug, Default)]
pub(super) enum Value {
    /// Null, or nothing yet.
    #[default]
    Null,
    /// A number or a boolean, as it was written.
    Other(Vec<u8>),
    /// A string's text in its escaped form.
    Text(Vec<u8>),
    /// An array's elements with the commas between them.
    List(Vec<u8>),
    /// An object.
    Members(BTreeMap<Vec<u8>, Value>),
    /// Tool calls, by their index. Some servers number each call 0: then there are several, and the last one grows.
    Calls(BTreeMap<u32, Vec<Value>>),
}

impl Value {
    /// Adds the value that comes next, which belongs to the member `name`. `held` counts the bytes.
    pub(super) fn absorb(
        &mut self,
        name: &[u8],
        scan: &mut Scanner<'_>,
        held: &mut usize,
    ) -> Result<(), Malformed> {
        match scan.peek()? {
            b'n' => drop(scan.skip()?),
            b'"' => {
                let text = scan.string()?;
                self.add_text(name, scan.of(text), held);
            }
            b'{' => self.add_members(scan, held)?,
            b'[' if name == b"tool_calls" => self.add_calls(scan, held)?,
            b'[' => {
                let elements = scan.array(|scan| scan.skip().map(drop))?;
                self.add_elements(scan.of(elements), held);
            }
            _ => {
                let value = scan.skip()?;
                self.set_other(scan.of(value), held);
            }
        }
        Ok(())
    }

    fn set_other(&mut self, value: &[u8], held: &mut usize) {
        let mut own = if let Self::Other(own) = std::mem::take(self) { own } else { Vec::new() };
        replace(&mut own, value, held);
        *self = Self::Other(own);
    }

    fn add_text(&mut self, name: &[u8], text: &[u8], held: &mut usize) {
        let mut own = if let Self::Text(own) = std::mem::take(self) { own } else { Vec::new() };
        if !matches!(name, b"id" | b"type" | b"role" | b"name") {
            own.extend_from_slice(text);
            *held += text.len();
        } else if !text.is_empty() {
            // Some servers repeat a call's name with every piece, others send it empty.
            replace(&mut own, text, held);
        }
        *self = Self::Text(own);
    }

    fn add_elements(&mut self, elements: &[u8], held: &mut usize) {
        let mut own = if let Self::List(own) = std::mem::take(self) { own } else { Vec::new() };
        if !own.is_empty() && !elements.is_empty() {
            own.push(b',');
        }
        own.extend_from_slice(elements);
        *held += elements.len() + 1;
        *self = Self::List(own);
    }

    fn add_members(&mut self, scan: &mut Scanner<'_>, held: &mut usize) -> Result<(), Malformed> {
        let mut own = if let Self::Members(own) = std::mem::take(self) { own } else { BTreeMap::new() };
        scan.object(|scan, key| {
            let name = scan.of(key);
            if let Some(value) = own.get_mut(name) {
                return value.absorb(name, scan, held);
            }
            *held += MEMBER_COST + name.len();
            own.entry(name.to_vec()).or_default().absorb(name, scan, held)
        })?;
        *self = Self::Members(own);
        Ok(())
    }

    /// A call without an index is a new call, and so is one with another id.
    fn add_calls(&mut self, scan: &mut Scanner<'_>, held: &mut usize) -> Result<(), Malformed> {
        let mut own = if let Self::Calls(own) = std::mem::take(self) { own } else { BTreeMap::new() };
        scan.array(|scan| {
            let span = scan.skip()?;
            let call = scan.of(span);
            if !call.starts_with(b"{") {
                return Ok(());
            }
            let next = own.last_key_value().map_or(0, |(last, _)| u32::saturating_add(*last, 1));
            let CallNames { index, id } = CallNames::of(call)?;
            let index = index.unwrap_or(next);
            let same_index = own.entry(index).or_default();
            if same_index.last().is_none_or(|last| last.is_another_call(id)) {
                *held += MEMBER_COST;
                same_index.push(Self::Null);
            }
            let Some(call_so_far) = same_index.last_mut() else { return Ok(()) };
            call_so_far.absorb(b"", &mut Scanner::new(call)?, held)
        })?;
        *self = Self::Calls(own);
        Ok(())
    }

    /// Whether a piece with `id`, in its escaped form, belongs to another call than this one.
    fn is_another_call(&self, id: &[u8]) -> bool {
        let Self::Members(members) = self else { return false };
        matches!(members.get(b"id".as_slice()), Some(Self::Text(own)) if !own.is_empty() && !id.is_empty() && own != id)
    }

    /// Appends its JSON.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Other(value) => out.extend_from_slice(value),
            Self::Text(text) => around(out, b'"', text, b'"'),
            Self::List(elements) => around(out, b'[', elements, b']'),
            Self::Members(members) => {
                out.push(b'{');
                for (name, value) in members {
                    member(out, name);
                    value.write(out);
                }
                out.push(b'}');
            }
            Self::Calls(calls) => {
                let mut separator = b'[';
                for call in calls.values().flatten() {
                    out.push(separator);
                    separator = b',';
                    call.write_call(out);
                }
                out.extend_from_slice(if calls.is_empty() { b"[]" } else { b"]" });
            }
        }
    }

    /// In a body, unlike in a chunk, a call has no index and always has a type.
    fn write_call(&self, out: &mut Vec<u8>) {
        let Self::Members(members) = self else { return self.write(out) };
        out.push(b'{');
        for (name, value) in members.iter().filter(|(name, _)| name[..] != b"index"[..]) {
            member(out, name);
            value.write(out);
        }
        if !members.contains_key(b"type".as_slice()) {
            member(out, b"type");
            out.extend_from_slice(b"\"function\"");
        }
        out.push(b'}');
    }
}

/// Puts `new` in the place of `old`, and counts.
pub(super) fn replace(old: &mut Vec<u8>, new: &[u8], held: &mut usize) {
    *held = *held - old.len() + new.len();
    old.clear();
    old.extend_from_slice(new);
}

/// What identifies a piece of a tool call.
#[derive(Default)]
struct CallNames<'a> {
    index: Option<u32>,
    /// In its escaped form; empty if there is none.
    id: &'a [u8],
}

impl<'a> CallNames<'a> {
    fn of(call: &'a [u8]) -> Result<Self, Malformed> {
        let mut names = Self::default();
        scan::object(call, |scan, key| {
            match (scan.of(key), scan.peek()?) {
                (b"index", _) => {
                    let value = scan.skip()?;
                    names.index = number(scan.of(value));
                }
                (b"id", b'"') => {
                    let id = scan.string()?;
                    names.id = scan.of(id);
                }
                _ => drop(scan.skip()?),
            }
            Ok(())
        })?;
        Ok(names)
    }
}

/// The `index` of an object.
pub(super) fn index_of(object: &[u8]) -> Result<Option<u32>, Malformed> {
    let mut index = None;
    scan::object(object, |scan, key| {
        let value = scan.skip()?;
        if scan.of(key) == b"index" {
            index = number(scan.of(value));
        }
        Ok(())
    })?;
    Ok(index)
}
