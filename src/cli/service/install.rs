//! What `service install` puts where, and what `service uninstall` takes away again.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
};

use super::{
    Places,
    manager::Manager,
    unit::{MARK, log_file},
};
use crate::{
    bridge::listener::HOME_LOCK,
    cli::{Stop, deregister, output},
    config::{Lookup, SESSION_FILE, SOCKET_FILE, TASKS_FILE},
};

/// Files of the home that belong to others.
const THEIRS: [&str; 2] = ["credentials", "config.json"];

/// Copies the program, writes the service's file, and starts the service.
pub(super) fn install(manager: &Manager, places: &Places, provide: bool) -> Result<(), Stop> {
    let text = places.unit(provide).text(manager.kind)?;
    manager.is_there()?;
    may_write(manager.file())?;
    copy_program(&places.program)?;
    let folder = manager.file().parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(manager.file(), text))
        .map_err(|error| cannot("write", manager.file(), &error))?;
    manager.start()?;
    output::print(&said(manager, places))?;
    Ok(())
}

fn said(manager: &Manager, places: &Places) -> String {
    let (program, file) = (places.program.display(), manager.file().display());
    let mut said = format!("installed {program}\ninstalled {file}\nstarted; see `mcprelay status`\n");
    said += &format!("log: {}\n", manager.log(&places.home));
    if let Some(command) = manager.without_login() {
        said += &format!("to keep it running while you are logged out: {command}\n");
    }
    said
}

/// A file that somebody else wrote in this place stays.
fn may_write(file: &Path) -> Result<(), Stop> {
    match fs::read_to_string(file) {
        Ok(text) if !text.contains(MARK) => Err(Stop::Failed(format!(
            "{} is not one of `mcprelay service install`: move it away first",
            file.display()
        ))),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(cannot("read", file, &error)),
        _ => Ok(()),
    }
}

/// Copies this program beside `to` and renames it, because a program that runs cannot be written to.
fn copy_program(to: &Path) -> Result<(), Stop> {
    let this = std::env::current_exe().map_err(|error| cannot("find", Path::new("this program"), &error))?;
    if this == to {
        return Ok(());
    }
    let folder = to.parent().unwrap_or(Path::new("/"));
    let draft = to.with_extension("new");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .and_then(|()| fs::copy(&this, &draft))
        .and_then(|_| fs::set_permissions(&draft, fs::Permissions::from_mode(0o700)))
        .and_then(|()| fs::rename(&draft, to))
        .map_err(|error| cannot("install", to, &error))
}

fn cannot(what: &str, path: &Path, error: &io::Error) -> Stop {
    Stop::Failed(format!("cannot {what} {}: {error}", path.display()))
}

/// Stops the service, withdraws its LLMs from mcpd, and removes everything that it and its installation wrote.
pub(super) async fn uninstall(
    manager: &Manager,
    places: &Places,
    args: &deregister::DeregisterArgs,
    env: Lookup<'_>,
) -> Result<(), Stop> {
    may_write(manager.file())?;
    if manager.file().exists() {
        manager.stop()?;
        remove(manager.file())?;
        manager.forget();
    }
    // mcpd may be away for good, which must not keep the program here.
    let withdrawn = deregister::withdraw(args, env).await;
    remove(&places.program)?;
    // It may hold what somebody else put there.
    let _ = places.program.parent().map(fs::remove_dir);
    for name in own_files(withdrawn.is_ok()) {
        remove(&places.home.join(name))?;
    }
    remove(&log_file(&places.home))?;
    output::print(&left(&places.home))?;
    Ok(output::print(&withdrawn?)?)
}

/// The files that an agent leaves in its home. Without the session nobody could withdraw its LLMs any more.
fn own_files(withdrawn: bool) -> Vec<String> {
    let lock = format!("{SOCKET_FILE}.lock");
    let files = [SOCKET_FILE, &lock, HOME_LOCK, TASKS_FILE, SESSION_FILE].map(str::to_owned);
    files.into_iter().filter(|name| withdrawn || name != SESSION_FILE).collect()
}

/// Removes a file, and says so; nothing if it is not there.
fn remove(file: &Path) -> Result<(), Stop> {
    match fs::remove_file(file) {
        Ok(()) => Ok(output::print(&format!("removed {}\n", file.display()))?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(cannot("remove", file, &error)),
    }
}

/// What is still in the home.
fn left(home: &Path) -> String {
    let Ok(entries) = fs::read_dir(home) else { return String::new() };
    let mut names: Vec<_> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let line = |name: &String| {
        let whose = if THEIRS.contains(&&**name) { "yours and mcpctl's" } else { "not of this service" };
        format!("kept {}, {whose}\n", home.join(name).display())
    };
    names.iter().map(line).collect()
}
