//! `mcprelay service`: the agent as a service of the user who runs the command.

mod install;
mod manager;
mod unit;

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{Stop, output, version};
use crate::{
    config::{FolderArgs, Lookup},
    platform::{self, ServiceManager},
};
use manager::Manager;
use unit::Unit;

/// Arguments of `service`.
#[derive(Debug, Args)]
pub struct ServiceArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: ServiceCommand,
}

/// What can be done with the service.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Copy this program into the home, write the service's file, start it now and at every login
    Install(UnitArgs),
    /// Stop it, withdraw its LLMs from mcpd, and remove what was installed
    Uninstall(UninstallArgs),
    /// Say whether it runs, from which files, and where its log is
    Status(FolderArgs),
    /// Print the service's file
    Print(PrintArgs),
}

/// What the service runs.
#[derive(Debug, Args)]
pub struct UnitArgs {
    /// Also serve the providers of config.json in the home, for an mcplocal that does not speak gRPC yet
    #[arg(long)]
    pub provide: bool,
    /// Where the files are.
    #[command(flatten)]
    pub folder: FolderArgs,
}

/// Arguments of `service uninstall`.
#[derive(Debug, Args)]
pub struct UninstallArgs {
    /// How mcpd is reached and where the files are.
    #[command(flatten)]
    pub deregister: super::deregister::DeregisterArgs,
}

/// Arguments of `service print`.
#[derive(Debug, Args)]
pub struct PrintArgs {
    /// For which service manager [default: this system's]
    #[arg(long = "for", value_enum, value_name = "MANAGER")]
    pub manager: Option<Kind>,
    /// What it runs.
    #[command(flatten)]
    pub unit: UnitArgs,
}

/// Service managers, as they are called on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Linux's
    Systemd,
    /// The one of macOS
    Launchd,
}

/// Installs, removes, shows or prints the service.
pub async fn run(args: ServiceArgs, env: Lookup<'_>) -> Result<(), Stop> {
    let this = platform::SERVICE_MANAGER;
    match args.command {
        ServiceCommand::Install(args) => {
            let places = Places::new(&args.folder, env)?;
            install::install(&Manager::of(this, env)?, &places, args.provide)
        }
        ServiceCommand::Uninstall(args) => {
            let places = Places::new(&args.deregister.folder, env)?;
            install::uninstall(&Manager::of(this, env)?, &places, &args.deregister, env).await
        }
        ServiceCommand::Status(folder) => status(&Manager::of(this, env)?, &Places::new(&folder, env)?),
        ServiceCommand::Print(args) => {
            let manager = match args.manager {
                None => this,
                Some(Kind::Systemd) => ServiceManager::Systemd,
                Some(Kind::Launchd) => ServiceManager::Launchd,
            };
            let places = Places::new(&args.unit.folder, env)?;
            Ok(output::print(&places.unit(args.unit.provide).text(manager)?)?)
        }
    }
}

/// Where the service's files are.
pub(super) struct Places {
    home: PathBuf,
    /// The copy of the program that the service runs.
    program: PathBuf,
}

impl Places {
    fn new(folder: &FolderArgs, env: Lookup<'_>) -> Result<Self, Stop> {
        let home = folder.path(env)?;
        Ok(Self { program: version::installed_program(&home), home })
    }

    fn unit(&self, provide: bool) -> Unit<'_> {
        Unit { program: &self.program, home: &self.home, provide }
    }
}

/// Says how the service is; a service that does not run is a failure.
fn status(manager: &Manager, places: &Places) -> Result<(), Stop> {
    let file = manager.file();
    if !file.exists() {
        return Err(Stop::Failed(format!(
            "no service is installed: there is no {}; `mcprelay service install` makes one",
            file.display()
        )));
    }
    let state = manager.state();
    let program = places.program.display();
    let version = version::of_program(&places.program);
    let version = version.as_deref().unwrap_or("which does not start");
    let (file, log) = (file.display(), manager.log(&places.home));
    output::print(&format!("service   {state}, {file}\nprogram   {program}, {version}\nlog       {log}\n"))?;
    match &*state {
        "active" => Ok(()),
        _ => Err(Stop::Failed(format!("the service does not run: see `{log}`"))),
    }
}
