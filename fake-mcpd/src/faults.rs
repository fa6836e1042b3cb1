//! What may go wrong on order: one grammar for `--fault`, the scenario file, `POST /_fake/faults` and the library.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::wire::CallKind;

/// The grammar, as `--help` shows it.
pub const GRAMMAR: &str = "\
A fault is NAME[,KEY=VALUE]...; durations read like 500ms or 2s.

  drop[,broken=true]     close every open channel; broken: in mid-body
  silent                 half-open: open channels stay but deliver nothing
  close-channels[,times=N]
                         close the next N channels right after their hello
  refuse[,what=connections][,for=D]
                         reset new connections; with what=calls cut every call
                         before it is looked at
  delay,call=C,by=D[,skip=N][,times=N]
                         hold calls back before they are looked at
  answer,call=C,status=S[,retry-after=R][,skip=N][,times=N][,html=true]
  [,body=TEXT]           answer calls with a status, unapplied
  lose-reply,call=C[,skip=N][,times=N]
                         apply calls, then cut before the reply
  no-session-id[,times=N]
                         leave the session id out of the register reply
  forget                 forget all sessions and tasks; rows stay, inactive
  restart                forget, and cut every connection
  twice[,times=N]        deliver the next N tasks twice
  task,json=TEXT         send TEXT as a task event's data to every channel
  garbage[,frame=TEXT]   send raw bytes to every channel; \\n, \\r are line ends
  cancel[,task=ID]       send cancel for a task, or for all under way
  clear                  end every fault that lasts

C is register, stream, heartbeat, result, list, infer, models or chat; without
call=C it is any of them. times is 1 unless given, 0 means until cleared; skip
lets the first N pass. body, json and frame take the rest of the text. Each takes
after=D (once D has passed) or at-task=N (as the N-th task is delivered).";

/// A thing that goes wrong. In JSON: `{"kind":"answer","call":"register","status":503}`; see [`GRAMMAR`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", rename_all_fields = "kebab-case")]
pub enum Fault {
    /// Close every open channel.
    Drop {
        /// Break the connection instead of ending the body.
        #[serde(default)]
        broken: bool,
    },
    /// Half-open: the open channels stay but deliver nothing.
    Silent,
    /// Close the next channels right after their hello.
    CloseChannels {
        /// How many; 0 means until cleared.
        #[serde(default = "once")]
        times: u32,
    },
    /// Refuse whatever comes.
    Refuse {
        /// New connections, or calls.
        #[serde(default)]
        what: Refused,
        /// For how long; until cleared if absent.
        #[serde(default, rename = "for", with = "duration", skip_serializing_if = "Option::is_none")]
        lasting: Option<Duration>,
    },
    /// Hold calls back before they are looked at.
    Delay {
        /// Which calls.
        #[serde(flatten)]
        aim: Aim,
        /// How long.
        #[serde(deserialize_with = "duration::required", serialize_with = "duration::plain")]
        by: Duration,
    },
    /// Answer calls with a status, unapplied.
    Answer {
        /// Which calls.
        #[serde(flatten)]
        aim: Aim,
        /// The answer.
        #[serde(flatten)]
        answer: Answer,
    },
    /// Apply calls, then cut the connection before the reply: whether it was applied is not to be known.
    LoseReply {
        /// Which calls.
        #[serde(flatten)]
        aim: Aim,
    },
    /// Leave the session id out of register replies.
    NoSessionId {
        /// How often; 0 means until cleared.
        #[serde(default = "once")]
        times: u32,
    },
    /// Forget all sessions and tasks.
    Forget,
    /// Forget all sessions and tasks, and cut every connection.
    Restart,
    /// Deliver the next tasks twice.
    Twice {
        /// How many; 0 means until cleared.
        #[serde(default = "once")]
        times: u32,
    },
    /// Send a task event of one's own.
    Task {
        /// Its data.
        json: String,
    },
    /// Send raw bytes.
    Garbage {
        /// The bytes; something unpleasant if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        frame: Option<String>,
    },
    /// Send cancel.
    Cancel {
        /// For this task; for all under way if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        task: Option<String>,
    },
    /// End every fault that lasts.
    Clear,
}

impl Fault {
    /// Whether it acts at once, and not on what comes next.
    pub(crate) fn acts_at_once(&self) -> bool {
        matches!(
            self,
            Self::Drop { .. }
                | Self::Silent
                | Self::Forget
                | Self::Restart
                | Self::Task { .. }
                | Self::Garbage { .. }
                | Self::Cancel { .. }
                | Self::Clear
        )
    }
}

/// Which calls a fault hits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Aim {
    /// Calls of this kind; any if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call: Option<CallKind>,
    /// How many pass first.
    #[serde(default)]
    pub skip: u32,
    /// How many it hits; 0 means until cleared.
    #[serde(default = "once")]
    pub times: u32,
}

impl Aim {
    /// The next call of a kind.
    pub fn next(call: CallKind) -> Self {
        Self { call: Some(call), skip: 0, times: 1 }
    }

    /// The next `times` of them; 0 means until cleared.
    pub fn times(mut self, times: u32) -> Self {
        self.times = times;
        self
    }

    /// After `skip` of them have passed.
    pub fn skip(mut self, skip: u32) -> Self {
        self.skip = skip;
        self
    }
}

/// An answer on order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// A `Retry-After` header, in seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<u32>,
    /// Answer as `text/html`, like a proxy's page.
    #[serde(default)]
    pub html: bool,
    /// The body; a fitting one if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
}

impl Answer {
    /// A bare status.
    pub fn status(status: u16) -> Self {
        Self { status, retry_after: None, html: false, body: None }
    }

    /// With `Retry-After`.
    pub fn retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    /// With this body.
    pub fn body(mut self, body: impl Into<String>) -> Self {
        self.body = Some(body.into());
        self
    }

    /// As an HTML page.
    pub fn html(mut self) -> Self {
        self.html = true;
        self
    }
}

/// What [`Fault::Refuse`] refuses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refused {
    /// New connections are reset.
    #[default]
    Connections,
    /// Every call's connection is cut before it is looked at.
    Calls,
}

fn once() -> u32 {
    1
}

/// A fault and when it comes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// When.
    pub trigger: Trigger,
    /// What.
    pub fault: Fault,
}

/// When a fault comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trigger {
    /// This long after the start.
    After(Duration),
    /// As the n-th task (from 1) is delivered.
    AtTask(u64),
}

/// Why a fault's text or JSON is not understood.
#[derive(Debug, thiserror::Error)]
#[error("the fault {text:?} is not understood: {reason}; `fake-mcpd --help` shows the grammar")]
pub struct BadFault {
    text: String,
    reason: String,
}

/// These keys take the rest of the text, commas included.
const GREEDY: [&str; 3] = ["body", "json", "frame"];

impl Step {
    /// Reads `NAME[,KEY=VALUE]...`.
    pub fn parse(text: &str) -> Result<Self, BadFault> {
        let bad = |reason: String| BadFault { text: text.to_owned(), reason };
        let mut fields = Map::new();
        let (name, mut rest) = text.split_once(',').unwrap_or((text, ""));
        fields.insert("kind".into(), name.trim().into());
        while !rest.is_empty() {
            let (key, after) = rest.split_once('=').ok_or_else(|| bad(format!("{rest:?} has no value")))?;
            let greedy = GREEDY.contains(&key);
            let (value, next) =
                if greedy { (after, "") } else { after.split_once(',').unwrap_or((after, "")) };
            fields.insert(key.to_owned(), if greedy { value.into() } else { scalar(key, value) });
            rest = next;
        }
        Self::from_fields(fields).map_err(bad)
    }

    /// Reads a fault's JSON: an object with the fault's fields, or a text as on the command line.
    pub fn from_json(value: Value) -> Result<Self, BadFault> {
        match value {
            Value::String(text) => Self::parse(&text),
            Value::Object(fields) => {
                let text = Value::Object(fields.clone()).to_string();
                Self::from_fields(fields).map_err(|reason| BadFault { text, reason })
            }
            other => Err(BadFault { text: other.to_string(), reason: "it is no object and no text".into() }),
        }
    }

    fn from_fields(mut fields: Map<String, Value>) -> Result<Self, String> {
        let after = fields.remove("after");
        let at_task = fields.remove("at-task");
        let trigger = match (after, at_task) {
            (Some(_), Some(_)) => return Err("after and at-task exclude each other".into()),
            (_, Some(number)) => Trigger::AtTask(number.as_u64().ok_or("at-task is no number")?),
            (Some(time), None) => Trigger::After(duration::read(&time)?),
            (None, None) => Trigger::After(Duration::ZERO),
        };
        let keys: Vec<String> = fields.keys().cloned().collect();
        let fault: Fault =
            serde_json::from_value(Value::Object(fields)).map_err(|error| error.to_string())?;
        let known = serde_json::to_value(&fault).map_err(|error| error.to_string())?;
        match keys.iter().find(|key| known.get(key).is_none()) {
            Some(key) => Err(format!("it has no key {key:?}")),
            None => Ok(Self { trigger, fault }),
        }
    }
}

/// A value of the command line in the type its key has in JSON.
fn scalar(key: &str, value: &str) -> Value {
    match value {
        _ if matches!(key, "task" | "after" | "by" | "for") => value.into(),
        "true" => true.into(),
        "false" => false.into(),
        _ => value.parse::<u64>().map_or_else(|_| value.into(), Value::from),
    }
}

/// Durations in JSON: a text such as `"2s"`, or a number of milliseconds.
mod duration {
    use super::*;

    pub(super) fn read(value: &Value) -> Result<Duration, String> {
        if let Some(ms) = value.as_u64() {
            return Ok(Duration::from_millis(ms));
        }
        let text = value.as_str().ok_or_else(|| format!("{value} is no duration"))?;
        humantime::parse_duration(text).map_err(|error| format!("{text:?} is no duration: {error}"))
    }

    pub(super) fn required<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        read(&Value::deserialize(deserializer)?).map_err(D::Error::custom)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        required(deserializer).map(Some)
    }

    pub(super) fn plain<S: serde::Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        humantime::format_duration(*value).to_string().serialize(serializer)
    }

    pub(super) fn serialize<S: serde::Serializer>(
        value: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        value.map(|value| humantime::format_duration(value).to_string()).serialize(serializer)
    }
}

/// What a fault does to one call.
#[derive(Debug, Default)]
pub(crate) struct Orders {
    pub(crate) cut: bool,
    pub(crate) delay: Option<Duration>,
    pub(crate) answer: Option<Answer>,
    pub(crate) lose_reply: bool,
}

/// The faults that wait for something to hit.
#[derive(Debug, Default)]
pub(crate) struct Armed {
    rules: Vec<Rule>,
    close_channels: Countdown,
    no_session_id: Countdown,
    twice: Countdown,
    refusing: Vec<(Refused, Option<Instant>)>,
}

/// An effect that waits for its calls.
#[derive(Debug)]
struct Rule {
    call: Option<CallKind>,
    skip: u32,
    left: Countdown,
    effect: Effect,
}

impl Rule {
    fn new(aim: Aim, effect: Effect) -> Self {
        Self { call: aim.call, skip: aim.skip, left: Countdown::from_times(aim.times), effect }
    }

    /// Whether it hits this call; counts it if so.
    fn hits(&mut self, call: CallKind) -> bool {
        if self.call.is_some_and(|aimed| aimed != call) {
            return false;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return false;
        }
        self.left.take()
    }
}

#[derive(Debug)]
enum Effect {
    Delay(Duration),
    Answer(Answer),
    LoseReply,
}

/// How often something still happens.
#[derive(Debug, Default, Clone, Copy)]
enum Countdown {
    #[default]
    Never,
    Left(u32),
    Always,
}

impl Countdown {
    fn from_times(times: u32) -> Self {
        if times == 0 { Self::Always } else { Self::Left(times) }
    }

    fn is_spent(self) -> bool {
        matches!(self, Self::Never | Self::Left(0))
    }

    /// Whether it happens now.
    fn take(&mut self) -> bool {
        match *self {
            Self::Never | Self::Left(0) => false,
            Self::Always => true,
            Self::Left(left) => {
                *self = Self::Left(left - 1);
                true
            }
        }
    }
}

impl Armed {
    /// Arms a fault that waits; gives one back that acts at once.
    pub(crate) fn arm(&mut self, now: Instant, fault: Fault) -> Option<Fault> {
        match fault {
            Fault::Delay { aim, by } => self.rules.push(Rule::new(aim, Effect::Delay(by))),
            Fault::Answer { aim, answer } => self.rules.push(Rule::new(aim, Effect::Answer(answer))),
            Fault::LoseReply { aim } => self.rules.push(Rule::new(aim, Effect::LoseReply)),
            Fault::CloseChannels { times } => self.close_channels = Countdown::from_times(times),
            Fault::NoSessionId { times } => self.no_session_id = Countdown::from_times(times),
            Fault::Twice { times } => self.twice = Countdown::from_times(times),
            Fault::Refuse { what, lasting } => {
                self.refusing.push((what, lasting.map(|lasting| now + lasting)));
            }
            Fault::Clear => {
                *self = Self::default();
                return Some(Fault::Clear);
            }
            at_once => return Some(at_once),
        }
        None
    }

    /// What to do to a call.
    pub(crate) fn orders(&mut self, now: Instant, call: CallKind) -> Orders {
        let mut orders = Orders { cut: self.refuses(now, Refused::Calls), ..Orders::default() };
        if orders.cut {
            return orders;
        }
        for rule in &mut self.rules {
            if orders.answer.is_some() || !rule.hits(call) {
                continue;
            }
            match &rule.effect {
                Effect::Delay(by) => orders.delay = Some(orders.delay.unwrap_or_default() + *by),
                Effect::Answer(answer) => orders.answer = Some(answer.clone()),
                Effect::LoseReply => orders.lose_reply = true,
            }
        }
        self.rules.retain(|rule| !rule.left.is_spent());
        orders
    }

    /// Whether connections or calls are refused now.
    pub(crate) fn refuses(&mut self, now: Instant, what: Refused) -> bool {
        self.refusing.retain(|(_, until)| until.is_none_or(|until| until > now));
        self.refusing.iter().any(|(refused, _)| *refused == what)
    }

    pub(crate) fn closes_channel(&mut self) -> bool {
        self.close_channels.take()
    }

    pub(crate) fn hides_session_id(&mut self) -> bool {
        self.no_session_id.take()
    }

    pub(crate) fn delivers_twice(&mut self) -> bool {
        self.twice.take()
    }
}
