//! As little HTTP/1.1 as the bench's own programs need, by hand: what they cost is taken from the relay under test.

use std::io;

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// Most headers of one message; reqwest, Node and hyper send about ten.
const MAX_HEADERS: usize = 48;
/// Room that is kept for the next read, in bytes.
const READ_ROOM: usize = 16 << 10;

/// How the end of a body is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// So many bytes are still to come.
    Known(usize),
    /// In chunks, the last of them empty.
    Chunked,
    /// It has ended.
    Over,
}

/// The first part of a request.
#[derive(Debug)]
pub struct Request {
    /// "GET", "POST".
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The length of what follows.
    pub length: Length,
}

/// The first part of a reply.
#[derive(Debug)]
pub struct Response {
    /// The HTTP status.
    pub status: u16,
    /// The length of what follows.
    pub length: Length,
}

/// One connection, of either side.
#[derive(Debug)]
pub struct Conn {
    stream: TcpStream,
    buffer: BytesMut,
}

impl Conn {
    /// Over a connected stream; what is written leaves at once.
    pub fn new(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: BytesMut::new() })
    }

    /// Connects to "127.0.0.1:port".
    pub async fn connect(address: &str) -> io::Result<Self> {
        Self::new(TcpStream::connect(address).await?)
    }

    /// The next request; `None` when the peer has closed the connection.
    pub async fn request(&mut self) -> io::Result<Option<Request>> {
        loop {
            if let Some(request) = self.parse_request()? {
                return Ok(Some(request));
            }
            if self.fill().await? == 0 {
                return Ok(None);
            }
        }
    }

    /// The reply to what was sent.
    pub async fn response(&mut self) -> io::Result<Response> {
        loop {
            if let Some(response) = self.parse_response()? {
                return Ok(response);
            }
            self.fill_some().await?;
        }
    }

    /// The whole body.
    pub async fn body(&mut self, mut length: Length) -> io::Result<Bytes> {
        if let Length::Known(len) = length {
            while self.buffer.len() < len {
                self.fill_some().await?;
            }
            return Ok(self.buffer.split_to(len).freeze());
        }
        let mut whole = BytesMut::new();
        while let Some(piece) = self.piece(&mut length).await? {
            whole.extend_from_slice(&piece);
        }
        Ok(whole.freeze())
    }

    /// What there is of the body; `None` at its end.
    pub async fn piece(&mut self, length: &mut Length) -> io::Result<Option<Bytes>> {
        match *length {
            Length::Over | Length::Known(0) => Ok(None),
            Length::Known(left) => {
                if self.buffer.is_empty() {
                    self.fill_some().await?;
                }
                let piece = self.buffer.split_to(left.min(self.buffer.len())).freeze();
                *length = Length::Known(left - piece.len());
                Ok(Some(piece))
            }
            Length::Chunked => self.chunk(length).await,
        }
    }

    async fn chunk(&mut self, length: &mut Length) -> io::Result<Option<Bytes>> {
        let size = loop {
            match httparse::parse_chunk_size(&self.buffer).map_err(|_| broken("a chunk's size"))? {
                httparse::Status::Complete((head, size)) => {
                    self.buffer.advance(head);
                    break usize::try_from(size).map_err(|_| broken("a chunk's size"))?;
                }
                httparse::Status::Partial => self.fill_some().await?,
            }
        };
        while self.buffer.len() < size + 2 {
            self.fill_some().await?;
        }
        let data = self.buffer.split_to(size).freeze();
        self.buffer.advance(2);
        if size == 0 {
            *length = Length::Over;
            return Ok(None);
        }
        Ok(Some(data))
    }

    /// Sends all of it.
    pub async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(READ_ROOM);
        self.stream.read_buf(&mut self.buffer).await
    }

    async fn fill_some(&mut self) -> io::Result<()> {
        match self.fill().await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    fn parse_request(&mut self) -> io::Result<Option<Request>> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Request::new(&mut headers);
        let status = parsed.parse(&self.buffer).map_err(|_| broken("a request"))?;
        let httparse::Status::Complete(len) = status else { return Ok(None) };
        let request = Request {
            method: parsed.method.unwrap_or_default().to_owned(),
            path: parsed.path.unwrap_or_default().to_owned(),
            length: length(parsed.headers),
        };
        self.buffer.advance(len);
        Ok(Some(request))
    }

    fn parse_response(&mut self) -> io::Result<Option<Response>> {
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut parsed = httparse::Response::new(&mut headers);
        let status = parsed.parse(&self.buffer).map_err(|_| broken("a reply"))?;
        let httparse::Status::Complete(len) = status else { return Ok(None) };
        let response = Response { status: parsed.code.unwrap_or_default(), length: length(parsed.headers) };
        self.buffer.advance(len);
        Ok(Some(response))
    }
}

fn length(headers: &[httparse::Header<'_>]) -> Length {
    let value = |name: &str| {
        let found = headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        std::str::from_utf8(found.value).ok()
    };
    if value("transfer-encoding").is_some_and(|encoding| encoding.eq_ignore_ascii_case("chunked")) {
        return Length::Chunked;
    }
    value("content-length").and_then(|text| text.parse().ok()).map_or(Length::Over, Length::Known)
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is not HTTP/1.1"))
}

/// A whole reply with a JSON body.
pub fn json_reply(status: u16, body: &str) -> Vec<u8> {
    let mut reply = format!(
        "HTTP/1.1 {status} -\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    reply.push_str(body);
    reply.into_bytes()
}

/// The head of a reply that is an event stream in chunks.
pub const EVENT_STREAM_HEAD: &[u8] =
    b"HTTP/1.1 200 -\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
/// The end of such a reply.
pub const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// Appends `data` as one chunk of a chunked body.
pub fn chunk_into(out: &mut Vec<u8>, data: &[u8]) {
    use std::io::Write as _;
    // Writing to a Vec cannot fail.
    let _ = write!(out, "{:x}\r\n", data.len());
    out.extend_from_slice(data);
    out.extend_from_slice(b"\r\n");
}
