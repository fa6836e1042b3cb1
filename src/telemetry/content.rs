//! Prompts and answers in the conventions' JSON form, only for who asked for content. A message has parts: `text`,
//! `reasoning`, `tool_call`, `tool_call_response`, `uri`, `blob` and `file`; a part of another kind stays as it came.

mod answer;

use serde::Deserialize;
use serde_json::{Value, json};

pub use answer::AnswerContent;

/// Most content that one attribute takes, in bytes. A span waits in the export's queue, so its size bounds that memory.
const MAX_CONTENT_BYTES: usize = 16 * 1024;

#[derive(Deserialize)]
struct Conversation {
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    role: String,
    #[serde(default)]
    content: Value,
    #[serde(default)]
    tool_calls: Vec<ToolCall>,
    tool_call_id: Option<String>,
}

/// A call of a tool, or a piece of one in a stream.
#[derive(Deserialize)]
struct ToolCall {
    index: Option<u32>,
    id: Option<String>,
    function: Option<Function>,
}

#[derive(Deserialize)]
struct Function {
    name: Option<String>,
    arguments: Option<String>,
}

/// The messages of an OpenAI chat body; `None` if it has none, or more than an attribute takes.
pub(super) fn input_messages(body: &[u8]) -> Option<String> {
    let conversation: Conversation = serde_json::from_slice(body).ok()?;
    let messages: Vec<Value> = conversation
        .messages
        .into_iter()
        .map(|message| json!({"role": message.role.clone(), "parts": message.parts()}))
        .collect();
    bounded(&Value::from(messages))
}

impl Message {
    fn parts(self) -> Vec<Value> {
        if let Some(id) = self.tool_call_id {
            return vec![json!({"type": "tool_call_response", "id": id, "response": self.content})];
        }
        let mut parts = match self.content {
            Value::Array(parts) => parts.into_iter().map(part).collect(),
            Value::String(text) => vec![text_part(text)],
            _ => Vec::new(),
        };
        parts.extend(self.tool_calls.into_iter().map(|call| {
            let function = call.function.unwrap_or(Function { name: None, arguments: None });
            call_part(call.id, function.name, &function.arguments.unwrap_or_default())
        }));
        parts
    }
}

/// One of OpenAI's content parts in the conventions' form.
fn part(mut part: Value) -> Value {
    let kind = part["type"].as_str().unwrap_or_default().to_owned();
    match kind.as_str() {
        "text" | "input_text" => json!({"type": "text", "content": part["text"].take()}),
        "image_url" => image(part["image_url"]["url"].as_str().unwrap_or_default()),
        "input_audio" => {
            let audio = &mut part["input_audio"];
            let mime_type = format!("audio/{}", audio["format"].as_str().unwrap_or("wav"));
            json!({"type": "blob", "modality": "audio", "mime_type": mime_type, "content": audio["data"].take()})
        }
        "file" if part["file"]["file_id"].is_string() => {
            json!({"type": "file", "modality": "document", "file_id": part["file"]["file_id"].take()})
        }
        _ => part,
    }
}

/// An image by its address; a `data:` URL is the image itself.
fn image(url: &str) -> Value {
    let data = url.strip_prefix("data:").and_then(|data| data.split_once(";base64,"));
    match data {
        Some((mime_type, content)) => {
            json!({"type": "blob", "modality": "image", "mime_type": mime_type, "content": content})
        }
        None => json!({"type": "uri", "modality": "image", "uri": url}),
    }
}

fn text_part(text: impl Into<Value>) -> Value {
    json!({"type": "text", "content": text.into()})
}

/// Arguments are JSON, as the conventions want them; what is not stays the text that it is.
fn call_part(id: Option<String>, name: Option<String>, arguments: &str) -> Value {
    let arguments = serde_json::from_str(arguments).unwrap_or_else(|_| Value::from(arguments));
    json!({"type": "tool_call", "id": id, "name": name.unwrap_or_default(), "arguments": arguments})
}

/// Half a JSON text is of no use to anybody, so too long a one is left out.
fn bounded(json: &Value) -> Option<String> {
    Some(json.to_string()).filter(|json| json.len() <= MAX_CONTENT_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(messages: &str) -> Option<Value> {
        let text = input_messages(format!(r#"{{"model":"m","messages":{messages}}}"#).as_bytes())?;
        serde_json::from_str(&text).ok()
    }

    #[test]
    fn a_conversation_with_tools_has_the_conventions_parts() {
        let got = read(
            r#"[{"role":"system","content":"be kind"},{"role":"user","content":"weather?"},
            {"role":"assistant","content":null,"tool_calls":[{"id":"c1","type":"function","function":{"name":"w","arguments":"{\"at\":\"Paris\"}"}}]},
            {"role":"tool","tool_call_id":"c1","content":"rain"}]"#,
        );
        let want = json!([
            {"role": "system", "parts": [{"type": "text", "content": "be kind"}]},
            {"role": "user", "parts": [{"type": "text", "content": "weather?"}]},
            {"role": "assistant", "parts": [{"type": "tool_call", "id": "c1", "name": "w", "arguments": {"at": "Paris"}}]},
            {"role": "tool", "parts": [{"type": "tool_call_response", "id": "c1", "response": "rain"}]},
        ]);
        assert_eq!(got, Some(want));
    }

    #[test]
    fn images_sounds_and_files_are_references_or_blobs_and_the_unknown_stays_as_it_is() {
        let got = read(
            r#"[{"role":"user","content":[{"type":"text","text":"see"},
            {"type":"image_url","image_url":{"url":"https://h/i.png"}},
            {"type":"image_url","image_url":{"url":"data:image/png;base64,AAAA"}},
            {"type":"input_audio","input_audio":{"data":"BBBB","format":"mp3"}},
            {"type":"file","file":{"file_id":"f1"}},{"type":"odd","x":1}]}]"#,
        );
        let want = json!([{"role": "user", "parts": [
            {"type": "text", "content": "see"},
            {"type": "uri", "modality": "image", "uri": "https://h/i.png"},
            {"type": "blob", "modality": "image", "mime_type": "image/png", "content": "AAAA"},
            {"type": "blob", "modality": "audio", "mime_type": "audio/mp3", "content": "BBBB"},
            {"type": "file", "modality": "document", "file_id": "f1"},
            {"type": "odd", "x": 1},
        ]}]);
        assert_eq!(got, Some(want));
    }

    #[test]
    fn what_no_attribute_takes_is_left_out() {
        assert_eq!(read(&format!(r#"[{{"role":"user","content":"{}"}}]"#, "x".repeat(20_000))), None);
        assert_eq!(input_messages(b"[]"), None);
    }
}
