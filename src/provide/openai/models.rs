//! A server's list of models, read as leniently as possible: one odd member of one row costs nothing else.

use serde_json::Value;

/// What is read of a list of models.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::provide) struct Models {
    /// The rows that have an id.
    pub(in crate::provide) rows: Vec<Model>,
}

/// One model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::provide) struct Model {
    /// What a request calls it.
    pub(in crate::provide) id: String,
    /// Who the server says owns it, by which servers are told apart; may be empty.
    pub(in crate::provide) owned_by: String,
    /// Its context in tokens.
    pub(in crate::provide) context_tokens: Option<u32>,
    /// It is one of several that the server loads on demand: llama.cpp's router tells each one's status.
    is_routed: bool,
}

impl Models {
    /// Reads a page in any of the shapes that servers give it: OpenAI's `data`, which an Ollama without models leaves null, `models`, or a bare
    /// array as at Together. `None` if it is no list of models.
    pub(in crate::provide) fn read(page: &[u8]) -> Option<Self> {
        let page: Value = serde_json::from_slice(page).ok()?;
        let list = match &page {
            Value::Object(members) => members.get("data").or_else(|| members.get("models"))?,
            page => page,
        };
        match list {
            Value::Array(rows) => Some(Self { rows: rows.iter().filter_map(Model::read).collect() }),
            Value::Null if page.is_object() => Some(Self::default()),
            _ => None,
        }
    }

    /// The row of the model that people call `name`.
    pub(in crate::provide) fn named(&self, name: &str) -> Option<&Model> {
        self.rows
            .iter()
            .find(|model| model.id == name)
            .or_else(|| self.rows.iter().find(|model| model.is(name)))
    }

    /// The one model of a llama.cpp that serves one, under whatever name it is asked for. Its router serves several by their names.
    pub(in crate::provide) fn only(&self) -> Option<&Model> {
        match self.rows.as_slice() {
            [only] if !only.is_routed => Some(only),
            _ => None,
        }
    }
}

impl Model {
    fn read(row: &Value) -> Option<Self> {
        let text = |name: &str| row[name].as_str().filter(|text| !text.is_empty());
        let id = row.as_str().or(text("id")).or(text("name")).or(text("model"))?;
        // vLLM; OpenRouter and others; what llama.cpp was started with; what its model was trained with.
        let context =
            ["/max_model_len", "/context_length", "/context_window", "/meta/n_ctx", "/meta/n_ctx_train"];
        Some(Self {
            id: id.to_owned(),
            owned_by: text("owned_by").unwrap_or_default().to_owned(),
            context_tokens: context.into_iter().find_map(|place| whole(row.pointer(place)?)),
            is_routed: row["status"].is_object(),
        })
    }

    /// Ollama lists "llama3:latest" and Gemini "models/gemini-…" for what people write without it.
    fn is(&self, name: &str) -> bool {
        let bare = |id: &str| id.trim_start_matches("models/").trim_end_matches(":latest").to_owned();
        bare(&self.id) == bare(name)
    }
}

/// A whole number above 0, also where it is written as a fraction.
pub(in crate::provide) fn whole(value: &Value) -> Option<u32> {
    let number = value
        .as_f64()
        .filter(|number| number.fract() == 0.0 && (1.0..=f64::from(u32::MAX)).contains(number))?;
    // In range and whole: the cast loses nothing.
    Some(number as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(page: &str) -> Option<Models> {
        Models::read(page.as_bytes())
    }

    #[test]
    fn a_list_is_read_in_every_shape_and_an_odd_row_costs_no_other() {
        let rows = r#"[{"id":"a","owned_by":null,"context_length":8192.0},7,{"id":null},"b",{"name":"c","max_model_len":"x"}]"#;
        for page in [
            format!(r#"{{"object":"list","data":{rows}}}"#),
            format!(r#"{{"models":{rows}}}"#),
            rows.to_owned(),
        ] {
            let models = read(&page).expect("a list");
            assert_eq!(
                models.rows.iter().map(|model| model.id.as_str()).collect::<Vec<_>>(),
                ["a", "b", "c"]
            );
            assert_eq!(models.rows[0].context_tokens, Some(8192));
        }
        assert_eq!(read(r#"{"object":"list","data":null}"#), Some(Models::default()));
        for page in ["", "<html>", "null", "7", r#"{"hello":1}"#, r#"{"data":"x"}"#] {
            assert_eq!(read(page), None, "{page}");
        }
    }

    #[test]
    fn a_router_has_no_only_model() {
        let one = r#"{"data":[{"id":"a","meta":{"n_ctx":7,"n_ctx_train":9}}]}"#;
        assert_eq!(read(one).expect("a list").only().and_then(|model| model.context_tokens), Some(7));
        for page in [
            r#"{"data":[{"id":"a"},{"id":"b"}]}"#,
            r#"{"data":[{"id":"a","status":{"value":"unloaded"}}]}"#,
            r#"{"data":[]}"#,
        ] {
            assert_eq!(read(page).expect("a list").only(), None, "{page}");
        }
    }
}
