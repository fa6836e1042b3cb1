//! Protobuf with a limit on what a message decodes to.
//!
//! Two bytes on the wire, an empty element of a repeated field, take a hundred times as much memory once decoded: 33 MiB of empty providers
//! become 3.4 GiB. Therefore a session's message has its fields counted before it is decoded, along the path that decoding takes.

use std::marker::PhantomData;

use bytes::Buf as _;
use prost::{
    DecodeError, Message,
    encoding::{WireType, decode_key, decode_varint},
};
use tonic::{
    Code, Status,
    codec::{Codec, DecodeBuf, Decoder},
};
use tonic_prost::ProstEncoder;

use crate::pb;

/// Most fields of one message to the agent, including those of its parts: enough for ten thousand providers with every field set and one
/// feature each. Decoded, they take some 27 MiB at most.
pub const MAX_FIELDS: usize = 1 << 17;

/// Which fields of a message are messages themselves, by number. Every other field is a leaf and counts as one, whatever its size.
#[derive(Debug)]
pub struct Shape(&'static [(u32, Shape)]);

/// A message that one side receives, and what has to be counted before it is decoded.
pub trait Taken: Message + Default + 'static {
    /// What is counted; `None` trusts the sender.
    const COUNTED: Option<Shape> = None;
}

/// A delta's `tool_calls`.
const DELTA: Shape = Shape(&[(3, Shape(&[]))]);

/// `providers` of a snapshot, with the `sharing` of each; a chunk's pieces, with the `tool_calls` of each
/// delta; `tool_calls` of a finished task's result.
impl Taken for pb::SessionRequest {
    const COUNTED: Option<Shape> = Some(Shape(&[
        (2, Shape(&[(2, Shape(&[(15, Shape(&[]))]))])),
        (3, Shape(&[(3, DELTA), (4, Shape(&[(2, DELTA)]))])),
        (4, Shape(&[(3, Shape(&[(3, Shape(&[]))]))])),
    ]));
}
impl Taken for pb::WatchStatusRequest {}
impl Taken for pb::SetPausedRequest {}
impl Taken for pb::GetUsageRequest {}
// What the agent itself sends to the clients in this program.
impl Taken for pb::SessionResponse {}
impl Taken for pb::WatchStatusResponse {}
impl Taken for pb::SetPausedResponse {}
impl Taken for pb::GetUsageResponse {}

/// The codec of the bridge's rpcs: prost's, with a count of the fields that come in.
#[derive(Debug)]
pub struct CountedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for CountedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: Message + 'static, U: Taken> Codec for CountedCodec<T, U> {
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = CountedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstEncoder::default()
    }

    fn decoder(&mut self) -> Self::Decoder {
        CountedDecoder(PhantomData)
    }
}

/// Decodes messages that have no more fields than allowed.
#[derive(Debug)]
pub struct CountedDecoder<U>(PhantomData<U>);

impl<U: Taken> Decoder for CountedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        let message = buf.copy_to_bytes(buf.remaining());
        // A field has two bytes at least, so most messages are too short to have too many.
        if let Some(shape) = U::COUNTED.filter(|_| message.len() > 2 * MAX_FIELDS) {
            let mut left = MAX_FIELDS;
            count(&message, &shape, &mut left)?;
        }
        Ok(Some(U::decode(message).map_err(Uncounted::from)?))
    }
}

/// Why a message is not decoded.
#[derive(Debug, thiserror::Error)]
enum Uncounted {
    #[error("a message of more than {MAX_FIELDS} fields; send fewer providers or tool calls at once")]
    TooMany,
    #[error("a message that is not protobuf: {0}")]
    Broken(#[from] DecodeError),
    #[error("a message that is not protobuf: it ends within a field")]
    Short,
    /// Groups, which no client of proto3 sends. Skipping one would mean to repeat what prost does inside it.
    #[error("a message with a group in it, which this protocol does not have")]
    Group,
}

impl From<Uncounted> for Status {
    fn from(why: Uncounted) -> Self {
        match why {
            Uncounted::TooMany => Self::resource_exhausted(why.to_string()),
            Uncounted::Broken(_) | Uncounted::Short | Uncounted::Group => {
                Self::invalid_argument(why.to_string())
            }
        }
    }
}

/// Subtracts the message's fields from `left`. A message that cannot be followed to its end is refused, because prost might get further.
fn count(mut message: &[u8], shape: &Shape, left: &mut usize) -> Result<(), Uncounted> {
    while !message.is_empty() {
        *left = left.checked_sub(1).ok_or(Uncounted::TooMany)?;
        let (number, kind) = decode_key(&mut message)?;
        let value = value(&mut message, kind)?;
        if let Some((_, inner)) = shape.0.iter().find(|(known, _)| *known == number) {
            count(value, inner, left)?;
        }
    }
    Ok(())
}

/// Steps over one field's value; returns its bytes if it is length-delimited, else none.
fn value<'a>(message: &mut &'a [u8], kind: WireType) -> Result<&'a [u8], Uncounted> {
    let (length, kept) = match kind {
        WireType::Varint => {
            decode_varint(message)?;
            (0, false)
        }
        WireType::ThirtyTwoBit => (4, false),
        WireType::SixtyFourBit => (8, false),
        WireType::LengthDelimited => (decode_varint(message)?, true),
        WireType::StartGroup | WireType::EndGroup => return Err(Uncounted::Group),
    };
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let (value, rest) = message.split_at_checked(length).ok_or(Uncounted::Short)?;
    *message = rest;
    Ok(if kept { value } else { &[] })
}

/// The status with which the client is told of a broken inbound stream.
pub(super) fn inbound_error(status: Status) -> Status {
    match status.code() {
        Code::OutOfRange => Status::resource_exhausted(status.message().to_owned()),
        _ => status,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(request: &[u8]) -> Result<usize, Uncounted> {
        let mut left = MAX_FIELDS;
        count(request, &pb::SessionRequest::COUNTED.expect("it is counted"), &mut left)?;
        Ok(MAX_FIELDS - left)
    }

    fn field(number: u8, inner: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2];
        prost::encoding::encode_varint(inner.len() as u64, &mut bytes);
        bytes.extend(inner);
        bytes
    }

    #[test]
    fn what_decodes_to_many_parts_is_counted_part_by_part() {
        let provider = field(2, &[field(1, b"name"), field(10, b""), field(10, b"")].concat());
        assert_eq!(counted(&field(2, &provider.repeat(3))).unwrap(), 1 + 3 * 4);
        let calls = field(3, &field(3, b"").repeat(5));
        assert_eq!(counted(&field(3, &calls)).unwrap(), 2 + 5, "a chunk's");
        assert_eq!(counted(&field(4, &calls)).unwrap(), 2 + 5, "a result's");
        let pieces = field(3, &field(4, &field(2, &field(3, b"").repeat(5))).repeat(3));
        assert_eq!(
            counted(&pieces).unwrap(),
            1 + 3 * (2 + 5),
            "a chunk's further pieces and what is in them"
        );
    }

    #[test]
    fn raw_bytes_count_as_one_whatever_is_in_them() {
        let json = field(3, &field(2, &field(3, b"").repeat(MAX_FIELDS)));
        assert_eq!(counted(&json).unwrap(), 2);
    }

    #[test]
    fn the_field_after_the_last_one_is_refused() {
        let with = |n: usize| field(2, &field(2, b"").repeat(n));
        assert_eq!(counted(&with(MAX_FIELDS - 1)).unwrap(), MAX_FIELDS);
        assert!(matches!(counted(&with(MAX_FIELDS)), Err(Uncounted::TooMany)));
        let unknown = field(2, &[0x78, 0].repeat(MAX_FIELDS));
        assert!(matches!(counted(&unknown), Err(Uncounted::TooMany)), "fields that nobody knows too");
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        for broken in [&[0x12, 9, 1][..], &[0x12], &[0xff; 11], &[0x07], &[0x12, 1, 0x80], &[0x0d, 1]] {
            assert!(matches!(counted(broken), Err(Uncounted::Broken(_) | Uncounted::Short)), "{broken:?}");
        }
        assert!(matches!(counted(&[0x13, 0x14]), Err(Uncounted::Group)));
    }

    /// Every repeated field below a session's request is on the way that is counted: the proto may get more of them.
    #[test]
    fn no_repeated_field_of_a_request_is_left_out() {
        let set = prost_types::FileDescriptorSet::decode(pb::FILE_DESCRIPTOR_SET).expect("it is ours");
        let messages: Vec<_> = set.file.iter().flat_map(|file| &file.message_type).collect();
        let of = |name: &str| {
            let name = name.rsplit('.').next().unwrap_or_default().to_owned();
            messages.iter().find(move |m| m.name() == name).expect("it is in the proto")
        };
        let counted = pb::SessionRequest::COUNTED.expect("it is counted");
        let mut open = vec![(of("SessionRequest"), Some(counted.0))];
        while let Some((message, shape)) = open.pop() {
            for field in &message.field {
                let inner =
                    shape.and_then(|s| s.iter().find(|(n, _)| i32::try_from(*n) == Ok(field.number())));
                let repeated = field.label() == prost_types::field_descriptor_proto::Label::Repeated;
                assert!(!repeated || shape.is_some(), "{}.{} is not counted", message.name(), field.name());
                if field.r#type() == prost_types::field_descriptor_proto::Type::Message {
                    open.push((of(field.type_name()), inner.map(|(_, shape)| shape.0)));
                }
            }
        }
    }
}
