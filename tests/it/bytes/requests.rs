//! Random chat requests, and what a provider must get from them.

use proptest::prelude::*;

use super::json::{a_gap, a_key, a_value, a_word, joined};

/// One member of a request: the gaps around its name and its value stay as they are.
#[derive(Clone, Debug)]
struct Member {
    gaps: [String; 4],
    key: String,
    value: Value,
}

/// A member's value, by what becomes of it at the provider host.
#[derive(Clone, Debug)]
enum Value {
    /// Nobody's business.
    Kept(String),
    /// The caller's name for the model.
    Model(String),
    /// Whether it wants a stream.
    Stream(&'static str),
    /// Its stream options, what they become in a stream, and whether they ask for usage.
    Options(&'static str, &'static str, bool),
}

/// Stream options, what they become, and whether they ask for usage.
const OPTIONS: [(&str, &str, bool); 5] = [
    ("null", r#"{"include_usage":true}"#, false),
    ("{}", r#"{"include_usage":true}"#, false),
    (r#"{ "x":[1.0] }"#, r#"{"include_usage":true, "x":[1.0] }"#, false),
    (r#"{"include_usage" : false,"x":1}"#, r#"{"include_usage" : true,"x":1}"#, false),
    (r#"{"include_usage": true , "x":null}"#, r#"{"include_usage": true , "x":null}"#, true),
];

/// A request as a caller sends it.
#[derive(Clone, Debug)]
pub struct Request {
    around: [String; 2],
    members: Vec<Member>,
}

impl Request {
    /// Its body.
    pub fn body(&self) -> String {
        format!("{}{}{}", self.around[0], self.object(|value| value.given()), self.around[1])
    }

    /// The task's request: line ends between two tokens cannot be said in an event of one line, so mcpd makes spaces of them, and
    /// what stands around the object is not part of it.
    pub fn as_task(&self) -> String {
        one_line(&self.object(|value| value.given()))
    }

    /// What a server with the model "real" gets: its model's name, the wish for usage in a stream, and every other byte as it was.
    pub fn at_provider(&self) -> String {
        let is_stream = self.is_stream();
        let text = self.object(|value| match value {
            Value::Model(_) => "\"real\"",
            Value::Options(_, in_stream, _) if is_stream => in_stream,
            value => value.given(),
        });
        let has = |kind: fn(&Value) -> bool| self.members.iter().any(|member| kind(&member.value));
        let model = (!has(|value| matches!(value, Value::Model(_)))).then_some(r#""model":"real""#);
        let options = (is_stream && !has(|value| matches!(value, Value::Options(..))))
            .then_some(r#""stream_options":{"include_usage":true}"#);
        let rest = (!self.members.is_empty()).then_some(&text[1..text.len() - 1]);
        let (added, rest) = (model.into_iter().chain(options).collect::<Vec<_>>(), rest.into_iter());
        one_line(&format!("{{{}}}", added.into_iter().chain(rest).collect::<Vec<_>>().join(",")))
    }

    /// Whether it asks for a stream: of a name that comes twice the last counts.
    pub fn is_stream(&self) -> bool {
        let streams = self.members.iter().rev().find_map(|member| match member.value {
            Value::Stream(stream) => Some(stream == "true"),
            _ => None,
        });
        streams.unwrap_or(false)
    }

    /// Whether it asks for a chunk with the usage.
    pub fn wants_usage(&self) -> bool {
        self.members.iter().any(|member| matches!(member.value, Value::Options(_, _, true)))
    }

    fn object(&self, value: impl Fn(&Value) -> &str) -> String {
        let member = |m: &Member| {
            let [a, b, c, d] = &m.gaps;
            format!("{a}\"{}\"{b}:{c}{}{d}", m.key, value(&m.value))
        };
        format!("{{{}}}", joined(&self.members, member))
    }
}

impl Value {
    fn given(&self) -> &str {
        match self {
            Self::Kept(text) | Self::Model(text) => text,
            Self::Stream(text) | Self::Options(text, ..) => text,
        }
    }
}

/// Line ends stand only between two tokens: in a string they are escaped.
pub fn one_line(json: &str) -> String {
    json.replace(['\n', '\r'], " ")
}

/// Any request; `stream` says which kind.
pub fn a_request(stream: bool) -> impl Strategy<Value = Request> {
    let options = prop::option::of(prop::sample::select(&OPTIONS[..])).prop_map(|given| {
        given.map(|(given, in_stream, asks)| ("stream_options", Value::Options(given, in_stream, asks)))
    });
    let model = || (prop::sample::select(vec!["model", r"m\u006fdel"]), "[a-z:.é]{0,8}");
    let models = prop::collection::vec(model(), 0..3).prop_map(|models| {
        models.into_iter().map(|(key, name)| (key, Value::Model(format!("\"{name}\"")))).collect::<Vec<_>>()
    });
    let fixed = (options, models, a_stream_wish(stream)).prop_map(|(options, models, streams)| {
        let named = options.into_iter().chain(models).chain(streams.map(|s| ("stream", Value::Stream(s))));
        named.map(|(key, value)| (key.to_owned(), value)).collect::<Vec<_>>()
    });
    let others =
        prop::collection::vec(prop_oneof![a_known_member(), (a_key(), a_value())], 0..6).prop_map(|others| {
            others.into_iter().map(|(key, value)| (key, Value::Kept(value))).collect::<Vec<_>>()
        });
    let members = (fixed, others)
        .prop_flat_map(|(fixed, others)| mixed(fixed, others))
        .prop_flat_map(|members| {
            let count = members.len();
            (Just(members), prop::collection::vec([a_gap(), a_gap(), a_gap(), a_gap()], count))
        })
        .prop_map(|(members, gaps)| {
            let member = |((key, value), gaps)| Member { gaps, key, value };
            members.into_iter().zip(gaps).map(member).collect()
        });
    ([a_gap(), a_gap()], members).prop_map(|(around, members)| Request { around, members })
}

/// What a request says of streaming: nothing or something, and the last word counts.
fn a_stream_wish(stream: bool) -> impl Strategy<Value = impl Iterator<Item = &'static str>> + Clone {
    let wishes: &[&[&str]] = if stream {
        &[&["true"], &["false", "true"]]
    } else {
        &[&[], &["false"], &["null"], &["true", "false"]]
    };
    prop::sample::select(wishes).prop_map(|wishes| wishes.iter().copied())
}

/// Both in one, in any order; the fixed ones keep theirs.
fn mixed(
    fixed: Vec<(String, Value)>,
    others: Vec<(String, Value)>,
) -> impl Strategy<Value = Vec<(String, Value)>> {
    prop::collection::vec(any::<prop::sample::Index>(), fixed.len()).prop_map(move |places| {
        let mut places: Vec<_> = places.iter().map(|place| place.index(others.len() + 1)).collect();
        places.sort_unstable();
        let mut all = others.clone();
        for (member, place) in fixed.iter().zip(places).rev() {
            all.insert(place, member.clone());
        }
        all
    })
}

/// A member that OpenAI's API knows.
fn a_known_member() -> impl Strategy<Value = (String, String)> {
    let image = "[A-Za-z0-9+/]{0,40}={0,2}".prop_map(|data| {
        format!(r#"[{{"role":"user","content":[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{data}"}}}}]}}]"#)
    });
    let text = (a_word(), a_value())
        .prop_map(|(text, odd)| format!(r#"[{{"role":"user" , "content":"{text}","x_odd":{odd}}}]"#));
    let tool = (a_word(), a_value()).prop_map(|(about, schema)| {
        format!(r#"[{{"type":"function","function":{{"name":"f","description":"{about}","parameters":{schema}}}}}]"#)
    });
    let few = vec![
        ("logprobs", "true"),
        ("top_logprobs", "20"),
        ("reasoning_effort", "\"high\""),
        ("temperature", "0.70"),
        ("max_completion_tokens", "1e3"),
        ("seed", "-9007199254740993"),
        ("stop", r#"["\n\n","é"]"#),
        ("logit_bias", r#"{"50256":-100}"#),
        ("tool_choice", r#"{"type":"function","function":{"name":"f"}}"#),
        ("response_format", r#"{"type":"json_schema","json_schema":{"strict":true}}"#),
    ];
    prop_oneof![
        text.prop_map(|text| ("messages".to_owned(), text)),
        image.prop_map(|image| ("messages".to_owned(), image)),
        tool.prop_map(|tool| ("tools".to_owned(), tool)),
        prop::sample::select(few).prop_map(|(key, value)| (key.to_owned(), value.to_owned())),
    ]
}
