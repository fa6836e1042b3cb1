use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

fn rewrite(body: &Bytes, model: &str) -> Result<RewrittenRequest, serde_json::Error> {
    rewrite_request(body, Wanted { model, stream: false, usage: true })
}

fn rewritten(body: &str) -> String {
    let rewritten = rewrite(&Bytes::copy_from_slice(body.as_bytes()), "m\"1").unwrap();
    String::from_utf8(rewritten.body.to_vec()).unwrap()
}

#[test]
fn only_the_top_level_model_is_replaced_where_it_stands() {
    let body = r#" { "messages" : [{"model":"inner","content":"\"model\":\"x\""}], "model" : "virtual" ,"z":1.50e3 } "#;
    let expected =
        r#" { "messages" : [{"model":"inner","content":"\"model\":\"x\""}], "model" : "m\"1" ,"z":1.50e3 } "#;
    assert_eq!(rewritten(body), expected);
}

#[test]
fn a_missing_model_is_put_first() {
    assert_eq!(rewritten(r#"{"n":1}"#), r#"{"model":"m\"1","n":1}"#);
    assert_eq!(rewritten("{ }"), r#"{"model":"m\"1" }"#);
}

#[test]
fn a_model_that_is_there_twice_or_under_an_escaped_key_is_replaced_everywhere() {
    assert_eq!(rewritten(r#"{"model":"a","mod\u0065l":null}"#), r#"{"model":"m\"1","mod\u0065l":"m\"1"}"#);
}

#[test]
fn a_stream_asks_for_usage_and_remembers_whose_wish_it_was() {
    for (options, expected, ours) in [
        (r#""x":1"#, r#""stream_options":{"include_usage":true},"model":"m","stream":true,"x":1"#, true),
        (
            r#""stream_options":null"#,
            r#""model":"m","stream":true,"stream_options":{"include_usage":true}"#,
            true,
        ),
        (
            r#""stream_options":{"a":{"include_usage":1}}"#,
            r#""model":"m","stream":true,"stream_options":{"include_usage":true,"a":{"include_usage":1}}"#,
            true,
        ),
        (
            r#""stream_options":{}"#,
            r#""model":"m","stream":true,"stream_options":{"include_usage":true}"#,
            true,
        ),
        (
            r#""stream_options":{"include_usage": false }"#,
            r#""model":"m","stream":true,"stream_options":{"include_usage": true }"#,
            true,
        ),
        (
            r#""stream_options":{"include_usage":true}"#,
            r#""model":"m","stream":true,"stream_options":{"include_usage":true}"#,
            false,
        ),
        (r#""stream_options":"odd""#, r#""model":"m","stream":true,"stream_options":"odd""#, true),
    ] {
        let body = format!(r#"{{"model":"v","stream":true,{options}}}"#);
        let rewritten = rewrite(&body.into(), "m").unwrap();
        assert_eq!(rewritten.body, format!("{{{expected}}}"));
        assert_eq!((rewritten.stream, rewritten.usage_is_ours), (true, ours), "{options}");
    }
}

#[test]
fn without_a_stream_no_options_are_added() {
    for body in [r#"{"model":"v"}"#, r#"{"model":"v","stream":false}"#, r#"{"model":"v","stream":null}"#] {
        let rewritten = rewrite(&Bytes::from(body), "v").unwrap();
        assert_eq!(
            (rewritten.body, rewritten.stream, rewritten.usage_is_ours),
            (Bytes::from(body), false, false)
        );
    }
}

#[test]
fn what_is_no_object_is_an_error() {
    for body in ["", "[]", "\"x\"", "{", "{\"a\":}", "{} {}", "\u{feff}{}"] {
        assert!(rewrite(&Bytes::from(body), "m").is_err(), "{body:?}");
    }
}

/// Any JSON value, not too deep.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
    ];
    let key = prop_oneof![Just("model".to_owned()), Just("stream_options".to_owned()), ".{0,8}"];
    leaf.prop_recursive(3, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..4)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn everything_but_the_model_and_the_wish_for_usage_comes_out_byte_for_byte(
        others in prop::collection::vec(("[a-z_]{1,12}|.{1,6}", any_json()), 0..6),
        model in prop::option::of(".*"),
        stream in prop::option::of(any::<bool>()),
        options in prop::option::of(prop_oneof![
            Just(json!({})),
            Just(json!({"include_usage": false})),
            Just(json!({"include_usage": true, "x": [1]})),
            any_json(),
        ]),
        pretty in any::<bool>(),
        at in any::<prop::sample::Index>(),
    ) {
        let mut members: Vec<(String, Value)> = Map::from_iter(others).into_iter()
            .filter(|(key, _)| !["model", "stream", "stream_options"].contains(&key.as_str()))
            .collect();
        for (key, value) in [
            ("model", model.map(Value::from)),
            ("stream", stream.map(Value::from)),
            ("stream_options", options),
        ] {
            if let Some(value) = value {
                members.insert(at.index(members.len() + 1), (key.to_owned(), value));
            }
        }
        let text = |value: &Value| if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
        // Values are compared as they are read back: the last digit of a float may differ from what was generated.
        let members: Vec<(String, Value, String)> = members
            .into_iter()
            .map(|(key, value)| (key, text(&value).unwrap()))
            .map(|(key, text)| (key, serde_json::from_str(&text).unwrap(), text))
            .collect();
        let body = format!("{{{}}}", members.iter().map(|(key, _, text)| format!("{} : {text}", json!(key))).collect::<Vec<_>>().join(" ,\n"));

        let rewritten = rewrite(&Bytes::from(body.clone()), "the-model").unwrap();

        // Every member that is not ours to change is in the output with the same bytes, and the output is JSON with our values.
        let out = String::from_utf8(rewritten.body.to_vec()).unwrap();
        let parsed: Value = serde_json::from_str(&out).unwrap();
        prop_assert_eq!(&parsed["model"], &json!("the-model"));
        for (key, value, text) in &members {
            let changed = key == "model" || (key == "stream_options" && stream == Some(true));
            if !changed {
                let member = format!("{} : {text}", json!(key));
                prop_assert!(out.contains(&member), "{} is not in {}", member, out);
                prop_assert_eq!(&parsed[key], value);
            }
        }
        let options = members.iter().find(|(key, ..)| key == "stream_options").map(|(_, value, _)| value);
        let asked = options.is_some_and(|options| options["include_usage"] == json!(true));
        prop_assert_eq!(rewritten.stream, stream == Some(true));
        prop_assert_eq!(rewritten.usage_is_ours, rewritten.stream && !asked);
        match (rewritten.stream, options) {
            (true, None | Some(Value::Null | Value::Object(_))) => {
                prop_assert_eq!(&parsed["stream_options"]["include_usage"], &json!(true));
            }
            (_, options) => prop_assert_eq!(parsed.get("stream_options"), options),
        }
    }
}

#[test]
fn what_needs_no_change_is_not_copied() {
    let body = Bytes::from_static(br#"{"model":"m","stream":true,"stream_options":{"include_usage":true}}"#);
    assert_eq!(rewrite(&body, "m").unwrap().body.as_ptr(), body.as_ptr());
}

#[test]
fn a_caller_who_wants_a_stream_gets_one_whatever_the_body_says() {
    let with = |body: &str| {
        let wanted = Wanted { model: "m", stream: true, usage: false };
        String::from_utf8(
            rewrite_request(&Bytes::copy_from_slice(body.as_bytes()), wanted).unwrap().body.to_vec(),
        )
        .unwrap()
    };
    for body in ["{}", r#"{"stream":false}"#, r#"{"model":"v","stream":null,"stream":false}"#, r#"{"n":1}"#] {
        let sent: Value = serde_json::from_str(&with(body)).unwrap();
        assert_eq!((&sent["stream"], &sent["model"]), (&json!(true), &json!("m")), "{body}");
        assert!(sent.get("stream_options").is_none(), "{body}");
    }
}

#[test]
fn an_empty_request_for_a_stream_becomes_three_members() {
    let wanted = Wanted { model: "m", stream: true, usage: true };
    let sent = rewrite_request(&Bytes::from_static(b"{ }"), wanted).unwrap().body;
    assert_eq!(sent, r#"{"model":"m","stream":true,"stream_options":{"include_usage":true} }"#);
}
