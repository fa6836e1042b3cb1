//! `mcprelay deregister`: withdraws a home's LLMs from mcpd, for an uninstall.

use std::{fs, path::Path};

use clap::Args;

use super::{
    Stop,
    http::{CALL_TIMEOUT, Mcpd},
    output,
};
use crate::{
    agent::files::StickySession,
    bridge::listener,
    config::{FolderArgs, Lookup, McpdArgs, SESSION_FILE},
    upstream::contract::{REGISTER_PATH, RegisterRequest},
};

/// Arguments of `deregister`.
#[derive(Debug, Args)]
pub struct DeregisterArgs {
    /// How mcpd is reached.
    #[command(flatten)]
    pub mcpd: McpdArgs,
    /// Where the files are.
    #[command(flatten)]
    pub folder: FolderArgs,
}

/// Withdraws, and says so.
pub async fn run(args: DeregisterArgs, env: Lookup<'_>) -> Result<(), Stop> {
    Ok(output::print(&withdraw(&args, env).await?)?)
}

/// Withdraws every LLM of the home's session from mcpd and forgets the session, so that a later agent gets a new one. Returns a sentence
/// about it.
pub(super) async fn withdraw(args: &DeregisterArgs, env: Lookup<'_>) -> Result<String, Stop> {
    let home = args.folder.path(env)?;
    let file = home.join(SESSION_FILE);
    let nothing = || format!("nothing to withdraw: there is no session in {}\n", file.display());
    if !home.is_dir() {
        return Ok(nothing());
    }
    // Held to the end: an agent that starts meanwhile would publish again.
    let _lock = listener::lock_home(&home).map_err(|error| Stop::Failed(error.to_string()))?;
    let Some(session) = StickySession::read(&file) else { return Ok(nothing()) };
    let mcpd = Mcpd::new(&args.mcpd, &home, env)?;
    belongs_to(&session, &mcpd)?;
    let empty =
        RegisterRequest { provider_session_id: Some(&session.provider_session_id), providers: Vec::new() };
    mcpd.send(mcpd.post(REGISTER_PATH).json(&empty).timeout(CALL_TIMEOUT), REGISTER_PATH).await?;
    forget(&file)?;
    let done = format!("withdrew the LLMs of {} from mcpd at {}\n", home.display(), mcpd.url());
    let former: Vec<_> = session.others.iter().map(|other| &*other.mcpd_url).collect();
    Ok(match &*former.join(", ") {
        "" => done,
        urls => {
            format!("{done}forgot its sessions at {urls}, where the agent withdrew everything when it left\n")
        }
    })
}

/// Another mcpd does not know the session, and would give it to this home as a new one.
fn belongs_to(session: &StickySession, mcpd: &Mcpd) -> Result<(), Stop> {
    match &session.mcpd_url {
        Some(url) if url != mcpd.url().as_str() => Err(Stop::Failed(format!(
            "the session is one of {url}, and the credentials are for {}: pass --mcpd-url {url}, and its token as MCPRELAY_TOKEN",
            mcpd.url()
        ))),
        _ => Ok(()),
    }
}

fn forget(file: &Path) -> Result<(), Stop> {
    fs::remove_file(file).map_err(|error| Stop::Failed(format!("cannot remove {}: {error}", file.display())))
}
