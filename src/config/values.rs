//! Parsing the values of flags; an error says what to write instead.

use std::{ffi::OsStr, net::SocketAddr, time::Duration};

use clap::builder::{PossibleValue, TypedValueParser};

use crate::credentials::McpdUrl;

/// The longest duration: its milliseconds still fit the proto's 32 bits.
const MAX_DURATION: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// The least and the most of the event limit: below, no chat fits; above, the bridge's own limit leaves 32 bits.
const EVENT_LIMIT_RANGE: std::ops::RangeInclusive<usize> = 64 << 10..=1 << 30;

/// Takes a value without the blanks around it and the CR after it that files with variables leave.
#[derive(Clone, Debug)]
pub struct Trimmed<P>(pub P);

impl<P: TypedValueParser> TypedValueParser for Trimmed<P> {
    type Value = P::Value;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        value: &OsStr,
    ) -> Result<Self::Value, clap::Error> {
        self.0.parse_ref(command, argument, value.to_str().map_or(value, |text| text.trim().as_ref()))
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        self.0.possible_values()
    }
}

/// A duration as people write it, greater than zero.
///
/// # Errors
/// What to write instead.
pub fn duration(text: &str) -> Result<Duration, String> {
    match duration_or_zero(text)? {
        Duration::ZERO => Err("it must be greater than zero".into()),
        duration => Ok(duration),
    }
}

pub(super) fn duration_or_zero(text: &str) -> Result<Duration, String> {
    let duration =
        humantime::parse_duration(text).map_err(|_| "write a number with a unit, as 500ms, 30s or 10m")?;
    if duration > MAX_DURATION {
        return Err("it must be at most 30 days".into());
    }
    Ok(duration)
}

pub(super) fn event_limit(text: &str) -> Result<usize, String> {
    let size = size(text).ok_or("write a number of bytes or one with a unit, as 512KiB or 32MiB")?;
    if !EVENT_LIMIT_RANGE.contains(&size) {
        return Err("it must be from 64KiB to 1GiB".into());
    }
    Ok(size)
}

/// A size in bytes, bare or with a binary unit.
fn size(text: &str) -> Option<usize> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let shift = match unit.trim_start() {
        "" | "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return None,
    };
    number.parse::<usize>().ok()?.checked_mul(1 << shift)
}

pub(super) fn mcpd_url(text: &str) -> Result<McpdUrl, String> {
    McpdUrl::parse(text).map_err(|why| format!("it {why}; write it like https://mcpd.example.com"))
}

pub(super) fn loopback(text: &str) -> Result<SocketAddr, String> {
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(address),
        Ok(_) => {
            Err("only loopback is served, because the page has no password: write it like 127.0.0.1:9464"
                .into())
        }
        Err(_) => Err("write an address and a port, as 127.0.0.1:9464".into()),
    }
}

pub(super) fn socket_mode(text: &str) -> Result<u32, String> {
    let mode =
        u32::from_str_radix(text.trim_start_matches("0o"), 8).map_err(|_| "write it octal, as 0600")?;
    if mode & !0o666 != 0 || mode & 0o600 != 0o600 {
        return Err(
            "the owner must have both read and write, and nobody more than that: write 0600, 0660 or 0666"
                .into(),
        );
    }
    Ok(mode)
}
