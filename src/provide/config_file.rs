//! `llm.providers[]` of config.json, read as leniently as possible: it is mcplocal's file, and other programs write to it too. Only
//! broken JSON is an error for the whole file.

use std::{collections::HashSet, fmt, time::Duration};

use serde_json::Value;

use super::providers;
use crate::domain::{Printable, ProviderName, Rule, Window, nearest};

/// The keys of the file that are read, and of `llm` in it.
const KEYS: [&str; 2] = ["mcpdUrl", "llm"];
const LLM_KEYS: [&str; 2] = ["providers", "sharing"];
/// The keys of an entry that are read.
const ENTRY_KEYS: [&str; 12] = [
    "name",
    "type",
    "model",
    "publishedModel",
    "url",
    "tier",
    "description",
    "publish",
    "maxInFlight",
    "apiKeyEnv",
    "sharing",
    "tokenDelayMs",
];

/// One entry, as its owner wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// `name`: the name of the virtual LLM.
    pub name: ProviderName,
    /// `type`: one of [`providers::kind_names`].
    pub kind: String,
    /// `model`: what the server calls it.
    pub model: String,
    /// `publishedModel`: what others read in its place, in the list and in answers.
    pub published_model: Option<String>,
    /// `url`, with or without `/v1`; if absent, the kind's usual address is used.
    pub url: Option<String>,
    /// `tier`; may be empty.
    pub tier: String,
    /// `description`; may be empty.
    pub description: String,
    /// `publish`: the owner's consent.
    pub publish: bool,
    /// The rules of `llm.sharing` and of its own `sharing`.
    pub sharing: Vec<Rule>,
    /// Why it cannot be shared, if a rule is not understood: to ignore the rule would share it against its owner's will.
    pub unshared: Option<String>,
    /// `maxInFlight`; if absent, the agent's setting applies.
    pub max_in_flight: Option<u32>,
    /// `apiKeyEnv`: the environment variable that holds the key.
    pub api_key_env: Option<String>,
    /// `tokenDelayMs`, for `echo` only: the pause between two words.
    pub token_delay: Option<Duration>,
}

impl Entry {
    /// An opted-in entry with nothing but what is required, for a program that needs no file.
    pub fn new(name: ProviderName, kind: impl Into<String>, model: impl Into<String>) -> Self {
        Self {
            name,
            kind: kind.into(),
            model: model.into(),
            published_model: None,
            url: None,
            tier: String::new(),
            description: String::new(),
            publish: true,
            sharing: Vec::new(),
            unshared: None,
            max_in_flight: None,
            api_key_env: None,
            token_delay: None,
        }
    }

    /// The model as others read it in the list: `publishedModel`, or the model. Of a path only the last part is anybody else's business.
    pub fn listed_model(&self) -> &str {
        match &self.published_model {
            Some(published) => published,
            None if is_path(&self.model) => last_part(&self.model),
            None => &self.model,
        }
    }
}

/// Whether a server's name for a model is a file's path: "hf.co/x/Qwen3" is none.
fn is_path(model: &str) -> bool {
    let drive = model.get(1..3).is_some_and(|rest| matches!(rest, ":\\" | ":/"));
    let file = model.ends_with(".gguf") && model.contains(['/', '\\']);
    drive || file || ["/", "./", "../", "~/", "\\\\"].iter().any(|root| model.starts_with(root))
}

/// The last part of a path, if it has one.
pub(super) fn last_part(path: &str) -> &str {
    path.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or(path)
}

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Parsed {
    /// The entries that can be used, in the file's order.
    pub entries: Vec<Entry>,
    /// What was skipped or ignored, and where.
    pub warnings: Vec<Warning>,
}

/// Something in the file that is not as it should be, without harm to the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Warning {
    /// Its place: `llm.providers[2].url`.
    pub place: String,
    /// What is wrong, and what becomes of it.
    pub what: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, Printable(&self.what))
    }
}

/// The file is not JSON, perhaps because it is half written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {what}")]
pub struct Broken {
    /// From 1.
    pub line: usize,
    /// From 1, in bytes; 0 means the end of the previous line.
    pub column: usize,
    /// What was expected.
    pub what: String,
}

/// Reads a whole file.
///
/// # Errors
/// Only if it is not JSON.
pub fn parse(text: &[u8]) -> Result<Parsed, Broken> {
    let root: Value = serde_json::from_slice(text).map_err(|error| {
        let what = error.to_string();
        let what = what.split(" at line ").next().unwrap_or_default().to_owned();
        Broken { line: error.line(), column: error.column(), what }
    })?;
    let mut parsed = Parsed::default();
    parsed.warn_of_slips("", &root, &KEYS);
    parsed.warn_of_slips("llm", &root["llm"], &LLM_KEYS);
    let llm = root.get("llm").unwrap_or(&Value::Null);
    let general = Fields { place: "llm", value: llm, warnings: &mut parsed.warnings }.sharing();
    let providers = llm.get("providers");
    match providers {
        None | Some(Value::Null) => {}
        Some(Value::Array(list)) => parsed.take_all(list, &general),
        Some(_) => parsed.warn("llm.providers".to_owned(), "is not a list; nothing is offered"),
    }
    Ok(parsed)
}

impl Parsed {
    fn take_all(&mut self, list: &[Value], general: &Result<Vec<Rule>, String>) {
        let mut names = HashSet::new();
        for (at, value) in list.iter().enumerate() {
            let place = format!("llm.providers[{at}]");
            self.warn_of_slips(&place, value, &ENTRY_KEYS);
            match (Fields { place: &place, value, warnings: &mut self.warnings }).entry(general) {
                Ok(entry) if names.insert(entry.name.clone()) => self.entries.push(entry),
                Ok(entry) => self.warn(place, format!("is a second {}; skipped", entry.name)),
                Err(what) => self.warn(place, format!("{what}; skipped")),
            }
        }
    }

    /// Warns of keys that resemble one of `known` which is missing: other unknown keys are other
    /// programs'.
    fn warn_of_slips(&mut self, place: &str, value: &Value, known: &[&str]) {
        let Some(members) = value.as_object() else { return };
        for key in members.keys().filter(|key| !known.contains(&key.as_str())) {
            let missing = known.iter().copied().filter(|known| !members.contains_key(*known));
            if let Some(near) = nearest(key, missing) {
                let place = format!("{place}.{}", Printable(key));
                let what = format!("is not read; \"{near}\" may be meant");
                self.warn(place.trim_start_matches('.').to_owned(), what);
            }
        }
    }

    fn warn(&mut self, place: String, what: impl Into<String>) {
        self.warnings.push(Warning { place, what: what.into() });
    }
}

/// The fields of one entry. A field of the wrong type is a warning and counts as absent.
struct Fields<'a> {
    place: &'a str,
    value: &'a Value,
    warnings: &'a mut Vec<Warning>,
}

impl<'a> Fields<'a> {
    fn entry(mut self, general: &Result<Vec<Rule>, String>) -> Result<Entry, String> {
        if !self.value.is_object() {
            return Err("is not an object".to_owned());
        }
        let name = self.text("name").ok_or("has no name")?;
        let name = ProviderName::new(&name).map_err(|bad| format!("has a name that {bad}"))?;
        let kind = self.text("type").ok_or_else(|| format!("({name}) has no type"))?;
        let known = providers::kind(&kind).ok_or_else(|| {
            format!("({name}) has the unknown type {kind:?}; known are {}", providers::kind_names())
        })?;
        let model = match self.text("model") {
            Some(model) => model,
            None if known.needs_model() => return Err(format!("({name}) has no model")),
            None => kind.clone(),
        };
        let own = self.sharing();
        let (sharing, unshared) = match (general, &own) {
            (Ok(general), Ok(own)) => ([&general[..], own].concat(), None),
            (Err(why), _) | (_, Err(why)) => (Vec::new(), Some(why.clone())),
        };
        Ok(Entry {
            sharing,
            unshared,
            published_model: self.text("publishedModel"),
            url: self.text("url"),
            tier: self.text("tier").unwrap_or_default(),
            description: self.text("description").unwrap_or_default(),
            publish: self.flag("publish"),
            max_in_flight: self.number("maxInFlight"),
            api_key_env: self.text("apiKeyEnv"),
            token_delay: self.number("tokenDelayMs").map(|millis| Duration::from_millis(millis.into())),
            name,
            kind,
            model,
        })
    }

    /// The rules of `sharing`. One that is not understood is an error.
    fn sharing(&mut self) -> Result<Vec<Rule>, String> {
        let Some(sharing) = self.get("sharing") else { return Ok(Vec::new()) };
        let place = format!("{}.sharing", self.place);
        let sharing = sharing.as_object().ok_or_else(|| format!("{place} is not an object"))?;
        let mut rules = Vec::new();
        for (key, value) in sharing.iter().filter(|(_, value)| !value.is_null()) {
            let rule = match &**key {
                "hours" => windows(value).map(|windows| Some(Rule::Hours(windows))),
                "onBattery" => on_battery(value),
                "whenIdleFor" => idle_for(value).map(Some),
                _ => {
                    let what = "is unknown; known are hours, onBattery and whenIdleFor".to_owned();
                    self.warnings.push(Warning { place: format!("{place}.{key}"), what });
                    continue;
                }
            };
            rules.extend(rule.map_err(|what| format!("{place}.{key} {what}"))?);
        }
        Ok(rules)
    }

    /// A text that is not empty.
    fn text(&mut self, key: &str) -> Option<String> {
        match self.get(key)? {
            Value::String(text) if text.trim().is_empty() => None,
            Value::String(text) => Some(text.trim().to_owned()),
            _ => self.ignored(key, "is not a text"),
        }
    }

    fn flag(&mut self, key: &str) -> bool {
        match self.get(key) {
            Some(Value::Bool(flag)) => *flag,
            // Consent is `true` and nothing else.
            Some(_) => self.ignored(key, "is neither true nor false").unwrap_or(false),
            None => false,
        }
    }

    fn number(&mut self, key: &str) -> Option<u32> {
        let value = self.get(key)?;
        match value.as_u64().and_then(|number| u32::try_from(number).ok()) {
            Some(number) => Some(number),
            None => self.ignored(key, "is not a whole number from 0"),
        }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.value.get(key).filter(|value| !value.is_null())
    }

    fn ignored<T>(&mut self, key: &str, what: &str) -> Option<T> {
        let place = format!("{}.{key}", self.place);
        self.warnings.push(Warning { place, what: format!("{what}; ignored") });
        None
    }
}

fn windows(value: &Value) -> Result<Vec<Window>, String> {
    let list = value.as_array().filter(|list| !list.is_empty()).ok_or("is not a list of windows")?;
    let window = |text: &Value| Window::parse(text.as_str().ok_or("has something that is not a text")?);
    list.iter().map(window).collect()
}

fn on_battery(value: &Value) -> Result<Option<Rule>, String> {
    let allowed = value.as_bool().ok_or("is neither true nor false")?;
    Ok((!allowed).then_some(Rule::NotOnBattery))
}

fn idle_for(value: &Value) -> Result<Rule, String> {
    let least = value.as_str().and_then(|text| humantime::parse_duration(text).ok());
    Ok(Rule::IdleFor(least.ok_or("is not a time like \"10m\"")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn warnings(text: &str) -> Vec<String> {
        parse(text.as_bytes()).unwrap().warnings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn every_key_is_read_and_other_programs_keys_are_nobodys_business() {
        let text = r#"{"mcpdUrl":1,"llm":{"x":[],"providers":[{"name":"a","type":"ollama","model":"m","url":"http://h",
            "tier":"fast","description":"d","publish":true,"maxInFlight":2,"apiKeyEnv":"K","tokenDelayMs":3,"publishedModel":"p","new":{}}]}}"#;
        let parsed = parse(text.as_bytes()).unwrap();
        let expected = Entry {
            url: Some("http://h".to_owned()),
            published_model: Some("p".to_owned()),
            tier: "fast".to_owned(),
            description: "d".to_owned(),
            max_in_flight: Some(2),
            api_key_env: Some("K".to_owned()),
            token_delay: Some(Duration::from_millis(3)),
            ..Entry::new(ProviderName::new("a").unwrap(), "ollama", "m")
        };
        assert_eq!(parsed, Parsed { entries: vec![expected], warnings: vec![] });
    }

    #[test]
    fn of_a_model_that_is_a_path_only_the_last_part_is_listed() {
        let listed = |model: &str| {
            Entry::new(ProviderName::new("a").unwrap(), "llamacpp", model).listed_model().to_owned()
        };
        for (model, shown) in [
            ("/home/bob/models/x.gguf", "x.gguf"),
            ("C:\\models\\x.gguf", "x.gguf"),
            ("./models/x", "x"),
            ("models/x.gguf", "x.gguf"),
            ("hf.co/bartowski/Qwen3", "hf.co/bartowski/Qwen3"),
            ("meta-llama/Llama-3", "meta-llama/Llama-3"),
            ("qwen3:8b", "qwen3:8b"),
        ] {
            assert_eq!(listed(model), shown);
        }
        let entry = Entry::new(ProviderName::new("a").unwrap(), "llamacpp", "/x/y");
        assert_eq!(Entry { published_model: Some("nice".to_owned()), ..entry }.listed_model(), "nice");
    }

    #[test]
    fn a_file_without_providers_offers_nothing_and_is_fine() {
        for text in ["{}", "[]", "null", r#"{"llm":null}"#, r#"{"llm":[]}"#, r#"{"llm":{"providers":null}}"#]
        {
            assert_eq!(parse(text.as_bytes()).unwrap(), Parsed::default(), "{text}");
        }
        assert_eq!(
            warnings(r#"{"llm":{"providers":{}}}"#),
            ["llm.providers: is not a list; nothing is offered"]
        );
    }

    #[test]
    fn a_bad_entry_is_skipped_with_its_place_and_the_others_stay() {
        let text = r#"{"llm":{"providers":[7,{"type":"echo"},{"name":"a","type":"teapot"},{"name":"b"},
            {"name":"c","type":"ollama"},{"name":"good","type":"echo"},{"name":"good","type":"echo"},{"name":"x\u0007","type":"echo"}]}}"#;
        let parsed = parse(text.as_bytes()).unwrap();
        assert_eq!(parsed.entries.len(), 1);
        assert_eq!(
            warnings(text),
            [
                "llm.providers[0]: is not an object; skipped".to_owned(),
                "llm.providers[1]: has no name; skipped".to_owned(),
                format!(
                    "llm.providers[2]: (a) has the unknown type \"teapot\"; known are {}; skipped",
                    providers::kind_names()
                ),
                "llm.providers[3]: (b) has no type; skipped".to_owned(),
                "llm.providers[4]: (c) has no model; skipped".to_owned(),
                "llm.providers[6]: is a second good; skipped".to_owned(),
                "llm.providers[7]: has a name that has control characters; skipped".to_owned(),
            ]
        );
    }

    #[test]
    fn a_field_of_the_wrong_type_is_ignored_and_never_taken_for_consent() {
        let text = r#"{"llm":{"providers":[{"name":"a","type":"echo","publish":"true","maxInFlight":-1,"tier":3}]}}"#;
        let entry = &parse(text.as_bytes()).unwrap().entries[0];
        assert_eq!((entry.publish, entry.max_in_flight, entry.tier.as_str()), (false, None, ""));
        assert_eq!(warnings(text).len(), 3);
        assert_eq!(warnings(text)[1], "llm.providers[0].publish: is neither true nor false; ignored");
    }

    #[test]
    fn an_unknown_key_that_resembles_a_missing_one_is_a_warning_and_another_programs_is_none() {
        let entry = |keys: &str| {
            warnings(&format!(r#"{{"llm":{{"providers":[{{"name":"a","type":"echo",{keys}}}]}}}}"#))
        };
        for (slip, meant) in [
            ("maxInFlite", "maxInFlight"),
            ("max_in_flight", "maxInFlight"),
            ("Publish", "publish"),
            ("publihs", "publish"),
            ("apiKeyENV", "apiKeyEnv"),
            ("publishModel", "publishedModel"),
        ] {
            let expected = format!("llm.providers[0].{slip}: is not read; \"{meant}\" may be meant");
            assert_eq!(entry(&format!(r#""{slip}":1"#)), [expected]);
        }
        for others in [r#""apiKey":1"#, r#""timeout":1"#, r#""model":"m","models":[]"#, r#""names":[]"#] {
            assert_eq!(entry(others), Vec::<String>::new(), "{others}");
        }
        assert_eq!(
            warnings(r#"{"llm":{"provider":[]}}"#),
            ["llm.provider: is not read; \"providers\" may be meant"]
        );
        assert_eq!(warnings(r#"{"LLM":{}}"#), ["LLM: is not read; \"llm\" may be meant"]);
    }

    #[test]
    fn rules_for_all_and_for_one_have_both_to_be_fulfilled() {
        let text = r#"{"llm":{"sharing":{"onBattery":false,"hours":null,"hour":1},"providers":[{"name":"a","type":"echo",
            "sharing":{"hours":["Mon-Fri 18:00-08:00","Sat-Sun"],"whenIdleFor":"10m","onBattery":true}},{"name":"b","type":"echo"}]}}"#;
        let parsed = parse(text.as_bytes()).unwrap();
        let windows = ["Mon-Fri 18:00-08:00", "Sat-Sun"].map(|text| Window::parse(text).unwrap());
        let own = [Rule::Hours(windows.into()), Rule::IdleFor(Duration::from_secs(600))];
        assert_eq!(parsed.entries[0].sharing, [&[Rule::NotOnBattery], &own[..]].concat());
        assert_eq!(parsed.entries[1].sharing, [Rule::NotOnBattery]);
        assert_eq!(
            warnings(text),
            ["llm.sharing.hour: is unknown; known are hours, onBattery and whenIdleFor"]
        );
    }

    #[test]
    fn what_has_a_rule_that_is_not_understood_is_not_shared() {
        let unshared = |rules: &str| {
            let text =
                format!(r#"{{"llm":{{"providers":[{{"name":"a","type":"echo","sharing":{rules}}}]}}}}"#);
            parse(text.as_bytes()).unwrap().entries[0].unshared.clone().unwrap_or_default()
        };
        for rules in [
            "[]",
            r#"{"hours":[]}"#,
            r#"{"hours":["at night"]}"#,
            r#"{"onBattery":"no"}"#,
            r#"{"whenIdleFor":10}"#,
        ] {
            assert!(unshared(rules).starts_with("llm.providers[0].sharing"), "{rules}: {}", unshared(rules));
        }
        let text = br#"{"llm":{"sharing":1,"providers":[{"name":"a","type":"echo"}]}}"#;
        assert_eq!(parse(text).unwrap().entries[0].unshared.as_deref(), Some("llm.sharing is not an object"));
    }

    #[test]
    fn a_broken_file_says_line_and_column() {
        let broken = parse(b"{\n  \"llm\": {\n    \"providers\": [}\n").unwrap_err();
        assert_eq!(broken.to_string(), "line 3, column 19: expected value");
        assert_eq!(parse(b"").unwrap_err().to_string(), "line 1, column 0: EOF while parsing a value");
    }
}
