//! The documentation is true: its links lead somewhere, its commands parse, its error texts are those of the source, and the command
//! reference is what the program says about itself.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use clap::{Command, CommandFactory as _, Parser as _};
use mcprelay::cli::Cli;

/// Where the generated reference is.
const CLI_REFERENCE: &str = "docs/reference/cli.md";
/// Set to write the reference instead of comparing it.
const WRITE: &str = "MCPRELAY_WRITE_DOCS";
/// How far the pieces of one message may be apart in the source, in bytes: a placeholder, or a line break in a literal.
const APART: usize = 200;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All files of one extension below `place`, without what is built or installed.
fn files(place: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(place).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() && !name.starts_with('.') && !matches!(&*name, "target" | "node_modules") {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|e| e == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// The text split into fenced blocks (with their language) and what is between them (`None`).
fn blocks(text: &str) -> Vec<(Option<&str>, Vec<&str>)> {
    let mut all = vec![(None, Vec::new())];
    for line in text.lines() {
        let inside = all.last().is_some_and(|(language, _)| language.is_some());
        match line.trim_start().strip_prefix("```") {
            Some(_) if inside => all.push((None, Vec::new())),
            Some(language) => all.push((Some(language.trim()), Vec::new())),
            None => all.last_mut().unwrap().1.push(line),
        }
    }
    all
}

fn prose(text: &str) -> String {
    let outside = blocks(text).into_iter().filter(|(language, _)| language.is_none());
    outside.flat_map(|(_, lines)| lines).collect::<Vec<_>>().join("\n")
}

// ---- links -------------------------------------------------------------------------------------------------------------

fn links(text: &str) -> Vec<String> {
    let prose = prose(text);
    let ends = prose.match_indices("](").map(|(at, open)| &prose[at + open.len()..]);
    ends.filter_map(|rest| rest.split_once(')')).map(|(target, _)| target.to_owned()).collect()
}

/// A heading's anchor, as GitHub makes it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.flat_map(char::to_lowercase).map(|c| if c == ' ' { '-' } else { c }).collect()
}

fn has_anchor(path: &Path, wanted: &str) -> bool {
    let prose = prose(&read(path));
    prose
        .lines()
        .filter(|line| line.starts_with('#'))
        .any(|line| anchor(line.trim_start_matches('#')) == wanted)
}

#[test]
fn every_relative_link_leads_somewhere() {
    let mut seen = 0;
    for path in files(root(), "md") {
        for link in links(&read(&path)).iter().filter(|link| !link.contains(':')) {
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            assert!(target.exists(), "{} links to {link}, which is not there", path.display());
            let found = heading.is_empty() || has_anchor(&target, heading);
            assert!(found, "{} links to {link}, which has no such heading", path.display());
            seen += 1;
        }
    }
    assert!(seen > 50, "only {seen} links were found");
}

// ---- commands ----------------------------------------------------------------------------------------------------------

/// A command line as a shell would split it, up to the first thing that is the shell's own.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        match (c, quote) {
            (c, Some(open)) if c == open => quote = None,
            (c, Some(_)) => word.get_or_insert_default().push(c),
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (' ', None) => words.extend(word.take()),
            ('|' | '&' | '>' | '<' | '#' | ';', None) => break,
            (c, None) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// The commands that the documentation tells people to type.
fn typed() -> Vec<(PathBuf, String)> {
    let of = |path: PathBuf| {
        let text = read(&path);
        let console = blocks(&text).into_iter().filter(|(language, _)| *language == Some("console"));
        let lines = console.flat_map(|(_, lines)| lines).filter_map(|line| line.strip_prefix("$ "));
        lines.map(|line| (path.clone(), line.to_owned())).collect::<Vec<_>>()
    };
    files(root(), "md").into_iter().flat_map(of).collect()
}

#[test]
fn every_mcprelay_command_in_the_docs_is_one() {
    let mut seen = 0;
    for (path, line) in typed() {
        let line = line.replace("cargo run --release -- ", "mcprelay ").replace("cargo run -- ", "mcprelay ");
        let words = words(&line);
        if words.first().is_some_and(|program| program == "mcprelay") {
            let parsed = Cli::try_parse_from(&words);
            assert!(parsed.is_ok(), "{}: `{line}`: {}", path.display(), parsed.unwrap_err());
            seen += 1;
        }
    }
    assert!(seen > 10, "only {seen} commands were found");
}

#[test]
fn every_flag_of_fake_mcpd_in_the_docs_is_one() {
    let source = read(&root().join("fake-mcpd/src/main.rs"));
    let mut seen = 0;
    for (path, line) in typed().into_iter().filter(|(_, line)| line.contains("fake-mcpd --")) {
        for flag in words(&line).iter().filter_map(|word| word.strip_prefix("--")) {
            let field = format!("    {}: ", flag.replace('-', "_"));
            assert!(source.contains(&field), "{}: `{line}`: there is no --{flag}", path.display());
            seen += 1;
        }
    }
    assert!(seen > 0, "no command was found");
}

// ---- error texts -------------------------------------------------------------------------------------------------------

/// The source's text with string literals as they are printed: escapes and continued lines resolved.
fn printed(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once('\\') {
        out += before;
        rest = after.strip_prefix('\n').map_or(after, str::trim_start);
    }
    out + rest
}

/// Whether the pieces follow each other closely somewhere in `text`.
fn has_pieces(text: &str, pieces: &[&str]) -> bool {
    let Some((first, others)) = pieces.split_first() else { return true };
    text.match_indices(first).any(|(at, found)| {
        let mut place = at + found.len();
        others.iter().all(|piece| match text[place..].find(piece) {
            Some(skipped) if skipped <= APART => {
                place += skipped + piece.len();
                true
            }
            _ => false,
        })
    })
}

#[test]
fn every_error_text_in_troubleshooting_is_in_the_source() {
    let sources: Vec<_> = files(&root().join("src"), "rs").iter().map(|path| printed(&read(path))).collect();
    let guide = read(&root().join("docs/troubleshooting.md"));
    let quoted = blocks(&guide).into_iter().filter(|(language, _)| *language == Some("text"));
    let lines: Vec<_> = quoted.flat_map(|(_, lines)| lines).collect();
    let is_printed = |line: &&str| {
        // What is so and what helps are joined only when they are printed.
        let pieces = line.split('…').flat_map(|piece| piece.split("; "));
        let pieces: Vec<_> = pieces.map(str::trim).filter(|piece| piece.len() > 1).collect();
        pieces.iter().any(|piece| piece.len() > 10) && sources.iter().any(|text| has_pieces(text, &pieces))
    };
    let strangers: Vec<_> = lines.iter().filter(|line| !is_printed(line)).collect();
    assert!(strangers.is_empty(), "no source prints these: {strangers:#?}");
    assert!(lines.len() > 20, "only {} texts were found", lines.len());
}

// ---- limits ------------------------------------------------------------------------------------------------------------

#[test]
fn every_constant_in_the_table_of_limits_is_where_it_says() {
    let mut seen = 0;
    for row in read(&root().join("docs/reference/limits.md")).lines().filter(|line| line.starts_with('|')) {
        let place = row.split('|').nth(3).unwrap_or_default();
        let named: Vec<_> = place.split('`').skip(1).step_by(2).collect();
        let mut constants = Vec::new();
        for name in named.iter().filter(|name| !name.starts_with("--")) {
            if name.ends_with(".rs") {
                let source = read(&root().join(name));
                for constant in constants.drain(..) {
                    assert!(
                        source.contains(&format!("const {constant}: ")),
                        "{name} has no {constant}: {row}"
                    );
                    seen += 1;
                }
            } else {
                constants.push(name);
            }
        }
        assert!(constants.is_empty(), "no file is named: {row}");
    }
    assert!(seen > 40, "only {seen} constants were found");
}

// ---- the command reference ---------------------------------------------------------------------------------------------

fn section(out: &mut String, command: &Command, name: &str) {
    let help = command.clone().bin_name(name).render_long_help().to_string();
    let help: Vec<_> = help.lines().map(str::trim_end).collect();
    *out += &format!("\n## {name}\n\n```\n{}\n```\n", help.join("\n").trim_end());
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        section(out, inner, &format!("{name} {}", inner.get_name()));
    }
}

/// The same on every machine: no terminal's width, no environment's values.
fn steady(command: Command) -> Command {
    command.term_width(110).mut_args(|arg| arg.hide_env_values(true)).mut_subcommands(steady)
}

fn cli_reference() -> String {
    let mut out = "# Commands\n\nWhat each command says with `--help`. Generated; \
                   `MCPRELAY_WRITE_DOCS=1 cargo test --test it docs` writes it anew.\n"
        .to_owned();
    section(&mut out, &steady(Cli::command()), "mcprelay");
    out
}

#[test]
fn the_command_reference_is_what_the_program_says() {
    let path = root().join(CLI_REFERENCE);
    let now = cli_reference();
    if env::var_os(WRITE).is_some() {
        fs::write(&path, &now).unwrap();
    }
    assert!(read(&path) == now, "{CLI_REFERENCE} is old: write it with {WRITE}=1 cargo test --test it docs");
}
