//! What a user would pick instead of the relay: a reverse tunnel to the provider. This is its data path without its protocol,
//! two copies of every byte, so a lower bound of what rathole, bore or `ssh -R` cost.

use std::io;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::spawn_local,
};

/// Where the tunnel ends.
#[derive(Clone, Debug, clap::Args)]
pub struct TunnelArgs {
    /// The provider's address
    #[arg(long)]
    provider: String,
}

/// The far end, which the callers connect to, and the near end beside the provider, in one process.
pub async fn serve(far: TcpListener, args: TunnelArgs) -> io::Result<()> {
    let near = TcpListener::bind("127.0.0.1:0").await?;
    let near_address = near.local_addr()?.to_string();
    tokio::try_join!(forward(far, near_address), forward(near, args.provider))?;
    Ok(())
}

async fn forward(listener: TcpListener, to: String) -> io::Result<()> {
    loop {
        let (from, _) = listener.accept().await?;
        let to = to.clone();
        spawn_local(async move {
            let mut ends = (from, TcpStream::connect(to).await?);
            ends.0.set_nodelay(true)?;
            ends.1.set_nodelay(true)?;
            copy_bidirectional(&mut ends.0, &mut ends.1).await
        });
    }
}
