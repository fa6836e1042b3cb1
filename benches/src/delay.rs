//! A relay that delays: mcpd as far away as a round trip says, over real sockets.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use clap::Args;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, sleep_until},
};

/// Pieces that may be on their way in one direction: more than any load of the bench has.
const PIECES: usize = 4096;

/// Arguments of `delay`.
#[derive(Clone, Debug, Args)]
pub struct DelayArgs {
    /// The server's "127.0.0.1:PORT"
    #[arg(long)]
    to: String,
    /// The round trip, in milliseconds
    #[arg(long)]
    rtt_ms: u64,
}

/// Relays until the process is killed.
pub async fn serve(listener: TcpListener, args: DelayArgs) -> io::Result<()> {
    let one_way = Duration::from_millis(args.rtt_ms) / 2;
    loop {
        let (stream, _) = listener.accept().await?;
        let to = args.to.clone();
        tokio::spawn(async move {
            // What breaks off is noticed by those at the ends.
            let _ = relay(stream, &to, one_way).await;
        });
    }
}

async fn relay(client: TcpStream, to: &str, one_way: Duration) -> io::Result<()> {
    let server = TcpStream::connect(to).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::try_join!(pass(from_client, to_server, one_way), pass(from_server, to_client, one_way)).map(drop)
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    one_way: Duration,
) -> io::Result<()> {
    let (sender, mut pieces) = mpsc::channel::<(Instant, Bytes)>(PIECES);
    let read = async move {
        let mut buffer = BytesMut::with_capacity(64 << 10);
        while from.read_buf(&mut buffer).await? > 0 {
            if sender.send((Instant::now() + one_way, buffer.split().freeze())).await.is_err() {
                break;
            }
            buffer.reserve(64 << 10);
        }
        io::Result::Ok(())
    };
    let write = async {
        while let Some((due, piece)) = pieces.recv().await {
            sleep_until(due).await;
            to.write_all(&piece).await?;
        }
        to.shutdown().await
    };
    tokio::try_join!(read, write).map(drop)
}
