//! `mcprelay publish` and `mcprelay unpublish`: flip one flag in config.json and leave everything else in it as it is.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs,
    io::{self, Write as _},
    os::unix::fs::MetadataExt as _,
    path::Path,
};

use clap::Args;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Stop, output};
use crate::{
    config::{FolderArgs, Lookup},
    credentials::CONFIG_FILE,
    domain::Printable,
};

/// Arguments of `publish` and `unpublish`.
#[derive(Debug, Args)]
pub struct PublishArgs {
    /// The entry's name in config.json
    pub name: String,
    /// Where the files are.
    #[command(flatten)]
    pub home: FolderArgs,
}

/// Where the flag is, in the text as it was written.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Root<'a> {
    #[serde(borrow)]
    llm: Llm<'a>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Llm<'a> {
    #[serde(borrow)]
    providers: Vec<&'a RawValue>,
}

type Members<'a> = BTreeMap<Cow<'a, str>, &'a RawValue>;

/// Sets the flag, and says what has changed.
pub fn run(args: &PublishArgs, publish: bool, env: Lookup<'_>) -> Result<(), Stop> {
    let path = args.home.path(env)?.join(CONFIG_FILE);
    let name = args.name.trim();
    let failed = |what: &dyn std::fmt::Display| Stop::Failed(format!("{}: {what}", path.display()));
    let text = fs::read_to_string(&path).map_err(|why| failed(&why))?;
    let word = if publish { "published" } else { "unpublished" };
    let name = Printable(name);
    match edited(&text, name.0, publish).map_err(|why| failed(&why))? {
        Some(new) => {
            replace(&path, &new).map_err(|why| failed(&format!("cannot be written: {why}")))?;
            Ok(output::print(&format!("{name} {word}\n"))?)
        }
        None => Ok(output::print(&format!("{name} is {word} already\n"))?),
    }
}

/// The text with the flag of this entry set; `None` if it is so already.
fn edited(text: &str, name: &str, publish: bool) -> Result<Option<String>, String> {
    let root: Root<'_> = serde_json::from_str(text).map_err(|why| format!("cannot be read: {why}"))?;
    let is_named = |members: &Members<'_>| {
        let own = members.get("name").and_then(|raw| serde_json::from_str::<String>(raw.get()).ok());
        own.is_some_and(|own| own.trim() == name)
    };
    let entries = root.llm.providers.iter().filter_map(|raw| {
        let members: Members<'_> = serde_json::from_str(raw.get()).ok()?;
        is_named(&members).then_some((raw.get(), members))
    });
    let (entry, members) = match entries.collect::<Vec<_>>().as_slice() {
        [one] => one.clone(),
        [] => return Err(format!("has no entry named \"{}\" in llm.providers", Printable(name))),
        _ => return Err(format!("has several entries named \"{}\": rename all but one", Printable(name))),
    };
    let (start, end, new) = match members.get("publish") {
        Some(flag) if (flag.get() == "true") == publish => return Ok(None),
        Some(flag) => {
            let start = offset(text, flag.get());
            (start, start + flag.get().len(), publish.to_string())
        }
        None if !publish => return Ok(None),
        None => {
            let name = members["name"].get();
            let at = offset(text, name) + name.len();
            (at, at, new_member(entry))
        }
    };
    Ok(Some([&text[..start], &new, &text[end..]].concat()))
}

/// The flag as a member of its own, written as the others of the entry are.
fn new_member(entry: &str) -> String {
    let before_first = entry[1..].split('"').next().unwrap_or_default();
    let blank = if entry.contains("\": ") { " " } else { "" };
    let gap = if before_first.contains('\n') { before_first } else { blank };
    format!(",{gap}\"publish\":{blank}true")
}

/// Where a part of a text begins in it.
fn offset(text: &str, part: &str) -> usize {
    part.as_ptr().addr() - text.as_ptr().addr()
}

/// Replaces a file's content in one step, keeping its mode; behind a link, the file that it leads to. What a new file would lose (further
/// names, another owner) has the file written in place.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    let before = fs::metadata(&path)?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    let mut new = tempfile::Builder::new().prefix(".mcprelay-").tempfile_in(folder)?;
    let after = new.as_file().metadata()?;
    if before.nlink() > 1 || (before.uid(), before.gid()) != (after.uid(), after.gid()) {
        return fs::write(path, text);
    }
    new.write_all(text.as_bytes())?;
    new.as_file().set_permissions(before.permissions())?;
    new.as_file().sync_all()?;
    new.persist(path).map_err(|error| error.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    const FILE: &str = r#"{
    "z": 1.50, "other": {"publish": false},
    "llm": {
        "providers": [
            {
                "name": "qwen3",
                "type":"ollama", "publish" :  false
            },
            {"name":"a\u0062","type":"echo"},
            {
                "type": "echo",
                "name": "spread"
            }
        ]
    }
}
"#;

    #[test]
    fn one_flag_changes_and_every_other_byte_stays() {
        let published = FILE.replace("\"publish\" :  false", "\"publish\" :  true");
        assert_eq!(edited(FILE, "qwen3", true).unwrap().as_deref(), Some(&*published));
        assert_eq!(edited(&published, "qwen3", false).unwrap().as_deref(), Some(FILE));
        assert_eq!(edited(FILE, "qwen3", false), Ok(None));
        assert_eq!(edited(FILE, "spread", false), Ok(None), "without the flag nothing is published");
    }

    #[test]
    fn a_flag_that_is_missing_is_written_as_its_neighbours_are() {
        let compact = edited(FILE, "ab", true).unwrap().unwrap();
        assert!(compact.contains(r#"{"name":"a\u0062","publish":true,"type":"echo"}"#), "{compact}");
        let spread = edited(FILE, "spread", true).unwrap().unwrap();
        let line = "                \"name\": \"spread\",\n                \"publish\": true\n";
        assert!(spread.contains(line), "{spread}");
    }

    #[test]
    fn what_is_not_clear_is_refused() {
        let twice = r#"{"llm":{"providers":[7,{"name":"a"},{"name":" a "}]}}"#;
        assert!(edited(twice, "a", true).unwrap_err().contains("several entries named \"a\""));
        assert!(edited("{}", "a", true).unwrap_err().contains("no entry named \"a\""));
        assert!(edited("{", "a", true).unwrap_err().contains("line 1 column 1"));
    }

    #[test]
    fn the_files_mode_links_and_names_are_kept() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        fs::write(at("real"), "old").unwrap();
        fs::set_permissions(at("real"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink(at("real"), at("link")).unwrap();
        replace(&at("link"), "new").unwrap();
        assert!(fs::symlink_metadata(at("link")).unwrap().is_symlink());
        assert_eq!(fs::read_to_string(at("real")).unwrap(), "new");
        assert_eq!(fs::metadata(at("real")).unwrap().permissions().mode() & 0o777, 0o640);
        fs::hard_link(at("real"), at("name")).unwrap();
        replace(&at("name"), "newer").unwrap();
        assert_eq!(fs::read_to_string(at("real")).unwrap(), "newer");
        assert_eq!(fs::read_dir(home.path()).unwrap().count(), 3, "nothing is left over");
    }
}
