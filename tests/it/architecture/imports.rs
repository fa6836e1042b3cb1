//! Reads which file of a source tree uses which: every `use`, re-exports followed, and every path that begins with `crate` or `super`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A module that has a file, as its path from the root.
pub type Module = Vec<String>;

/// The generated module has no file.
const GENERATED: &str = "pb";

/// A source tree: what each file's paths lead to.
pub struct Tree {
    paths: BTreeMap<Module, Vec<Module>>,
    /// The names that a module's `use` declarations give it, and what they mean.
    names: BTreeMap<(Module, String), Module>,
}

impl Tree {
    /// Reads all files below `root`; tests, and what follows an inline module of tests, are left out.
    pub fn read(root: &Path) -> Self {
        let files = rust_files(root);
        let modules: BTreeMap<Module, String> = files
            .iter()
            .map(|path| (module_of(path.strip_prefix(root).unwrap()), product_code(path)))
            .filter(|(module, _)| module.iter().all(|part| part != "tests" && !part.ends_with("_tests")))
            .collect();
        let mut tree =
            Self { paths: modules.keys().map(|m| (m.clone(), vec![])).collect(), names: BTreeMap::new() };
        for (module, text) in &modules {
            for (path, alias) in used_paths(text) {
                let Some(path) = tree.absolute(module, &path) else { continue };
                if let Some(name) = alias {
                    tree.names.insert((module.clone(), name), path.clone());
                }
                tree.paths.get_mut(module).unwrap().push(path);
            }
        }
        tree
    }

    /// Which module uses which.
    pub fn uses(&self) -> impl Iterator<Item = (&Module, Module)> {
        let each = move |(from, paths)| {
            let paths: &Vec<Module> = paths;
            paths.iter().map(move |path| (from, self.target(path, 8))).filter(|(from, to)| *from != to)
        };
        self.paths.iter().flat_map(each)
    }

    /// Groups of modules each of which uses the others in the end; edges between a module and one inside it do not count.
    pub fn circles(&self) -> Vec<Vec<Module>> {
        let inside = |a: &Module, b: &Module| a.starts_with(b) || b.starts_with(a);
        let mut reach: BTreeMap<&Module, BTreeSet<Module>> = BTreeMap::new();
        for (from, to) in self.uses().filter(|(from, to)| !inside(from, to)) {
            reach.entry(from).or_default().insert(to);
        }
        loop {
            let before: usize = reach.values().map(BTreeSet::len).sum();
            let step = reach.clone();
            for seen in reach.values_mut() {
                let further: Vec<_> = seen.iter().filter_map(|m| step.get(m)).flatten().cloned().collect();
                seen.extend(further);
            }
            if reach.values().map(BTreeSet::len).sum::<usize>() == before {
                break;
            }
        }
        let circle = |m: &Module| {
            let peers = reach[m].iter().filter(|other| reach.get(other).is_some_and(|r| r.contains(m)));
            peers.cloned().collect::<Vec<_>>()
        };
        let mut circles: Vec<_> = reach.keys().map(|m| circle(m)).filter(|c| c.len() > 1).collect();
        circles.sort();
        circles.dedup();
        circles
    }

    /// A path as written in `module`, from the root; `None` if it leads to another crate.
    fn absolute(&self, module: &Module, path: &[String]) -> Option<Module> {
        let (first, rest) = path.split_first()?;
        let supers = path.iter().take_while(|part| *part == "super").count();
        Some(match first.as_str() {
            "crate" => rest.to_vec(),
            "self" => [module, rest].concat(),
            "super" => [module.get(..module.len().checked_sub(supers)?)?, &path[supers..]].concat(),
            _ if self.paths.contains_key(&[module, std::slice::from_ref(first)].concat()) => {
                [module, path].concat()
            }
            _ => return None,
        })
    }

    /// The module whose file a path leads to; re-exports are followed, `hops` of them at most.
    fn target(&self, path: &[String], hops: usize) -> Module {
        if path.first().is_some_and(|first| first == GENERATED) {
            return vec![GENERATED.to_owned()];
        }
        let known = (0..=path.len()).take_while(|n| *n == 0 || self.paths.contains_key(&path[..*n])).last();
        let (module, rest) = path.split_at(known.unwrap_or(0));
        let meaning = rest.first().and_then(|name| self.names.get(&(module.to_vec(), name.clone())));
        match meaning {
            Some(meaning) if hops > 0 && meaning != path => {
                self.target(&[meaning, &rest[1..]].concat(), hops - 1)
            }
            _ => module.to_vec(),
        }
    }
}

/// All Rust files at or below a path.
pub fn rust_files(path: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![path.to_owned()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

fn module_of(path: &Path) -> Module {
    let path = path.with_extension("");
    let mut parts: Module = path.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    parts.pop_if(|last| *last == "mod" || (path.as_os_str() == "lib"));
    parts
}

/// A file's text without comments, and without what follows an inline module of tests.
fn product_code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text: String =
        text.lines().flat_map(|line| [line.split("//").next().unwrap_or_default(), "\n"]).collect();
    let inline_tests = text.match_indices("#[cfg(test)]").find(|(at, mark)| {
        let item = text[at + mark.len()..].trim_start();
        item.starts_with("mod ")
            && item.split_once(['{', ';']).is_some_and(|(head, _)| item[head.len()..].starts_with('{'))
    });
    text[..inline_tests.map_or(text.len(), |(at, _)| at)].to_owned()
}

/// Every path of a `use`, with the name that it gives, and every other path that begins with `crate` or `super`.
fn used_paths(text: &str) -> Vec<(Vec<String>, Option<String>)> {
    let mut found = Vec::new();
    let mut statements = text.split_inclusive(';');
    for statement in statements.by_ref() {
        let start = statement.rfind("\nuse ").map(|at| at + 5).or_else(|| public_use(statement));
        let (code, tree) = start.map_or((statement, ""), |at| statement.split_at(at));
        expand("", tree.trim_end_matches(';'), &mut found);
        let words = code.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
        let paths =
            words.filter(|w| w.starts_with("crate::") || w.starts_with("super::") || w.starts_with("self::"));
        found.extend(paths.map(|path| (parts(path), None)));
    }
    found
}

/// Where the tree of a `use` begins that is not private, or stands inside something.
fn public_use(statement: &str) -> Option<usize> {
    let at = statement.rfind("use ")?;
    let before = statement[..at].trim_end();
    let begins = before.is_empty() || before.ends_with(['{', '}', ')', ']']) || before.ends_with("pub");
    begins.then_some(at + 4)
}

/// The paths of a tree such as `a::{b, c as d, e::{self, f}}`.
fn expand(prefix: &str, tree: &str, found: &mut Vec<(Vec<String>, Option<String>)>) {
    let tree = tree.trim();
    if let Some((head, inner)) = tree.split_once('{') {
        let inner = &inner[..inner.rfind('}').unwrap_or(inner.len())];
        let mut depth = 0;
        let branches = inner.split(|c| {
            depth += i32::from(c == '{') - i32::from(c == '}');
            c == ',' && depth == 0
        });
        return branches.for_each(|branch| expand(&format!("{prefix}{}", head.trim()), branch, found));
    }
    if tree.is_empty() {
        return;
    }
    let (path, alias) =
        tree.split_once(" as ").map_or((tree, None), |(path, alias)| (path, Some(alias.trim())));
    let mut path = parts(&format!("{prefix}{path}"));
    path.pop_if(|last| last == "self");
    let name = alias.or(path.last().map(String::as_str)).map(str::to_owned);
    found.push((path, name));
}

fn parts(path: &str) -> Vec<String> {
    path.split("::").map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
}
