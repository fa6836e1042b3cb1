//! How a fault is written down: one grammar for `--fault`, the scenario file and `POST /_fake/faults`.

use std::time::Duration;

use serde_json::{Map, Value};

use crate::duration;
use crate::faults::Fault;

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
  break-upload[,bytes=K][,lines=K][,applied=true][,skip=N][,times=N]
                         cut an upload's connection after K bytes or with its
                         K-th line, which is lost or applied first
  hold-upload[,times=N]  look at uploads only once they have come whole, as if
                         a proxy collected them
  lose-line,line=K[,times=N]
                         lose the K-th line of an upload: the next leaves a gap
  lose-received[,times=N]
                         do not send the next N received events
  no-session-id[,times=N]
                         leave the session id out of the register reply
  forget                 forget all sessions and tasks; rows stay, inactive
  restart                forget, and cut every connection
  twice[,times=N]        deliver the next N tasks twice
  overtake[,times=N]     send the next N tasks after the event that follows
                         each, or a second later
  task,json=TEXT         send TEXT as a task event's data to every channel
  garbage[,frame=TEXT]   send raw bytes to every channel; \\n, \\r are line ends
  cancel[,task=ID]       send cancel for a task, or for all under way
  clear                  end every fault that lasts

C is register, stream, heartbeat, result, result-stream, list, infer, models or
chat; without call=C it is any of them. times is 1 unless given, 0 means until cleared; skip
lets the first N pass. body, json and frame take the rest of the text. Each takes
after=D (once D has passed) or at-task=N (as the N-th task is delivered).";

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
    ///
    /// # Errors
    /// If there is no such fault, or a key or value that it does not have.
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
    ///
    /// # Errors
    /// As [`Step::parse`], and if it is neither an object nor a text.
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
