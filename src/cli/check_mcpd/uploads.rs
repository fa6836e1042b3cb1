//! The clauses on uploads, where mcpd offers them.

use super::{
    Broken, Check,
    frames::Frames,
    inference::{chunk, expect_piece, piece},
    peer::{Channel, Upload, next_data},
    so,
};
use crate::{
    cli::Stop,
    domain::TaskId,
    upstream::contract::{DONE, RESULT_STREAM, ResultPart},
};

impl Check {
    /// One inference whose answer is an upload that breaks in the middle.
    pub(super) async fn uploading(&mut self, channel: &mut Channel) -> Result<(), Stop> {
        const FIRST: &str = "a line of an upload reaches the caller before the next is sent";
        if !self.result_stream {
            let why = format!("mcpd does not offer {RESULT_STREAM}, so each part of an answer is a POST");
            self.clause::<()>("6", FIRST, Err(Broken::Skip(why)))?;
            return Ok(());
        }
        let begun = self.first_line(channel).await;
        let Some((task, mut answer, upload)) = self.clause("6", FIRST, begun)? else { return Ok(()) };
        let told = channel.is_received(&task, 2).await;
        self.clause("6", "mcpd says at once that it has the first line", told)?;
        drop(upload);
        let dropped = self.repeated_line(&task, &mut answer).await;
        self.clause("6", "a line that comes again after a break is dropped", dropped)?;
        let refused = self.gap(&task).await;
        self.clause("6", "a gap is answered 409 with the part that is due", refused)?;
        let ended = self.last_line(&task, &mut answer).await;
        self.clause("6", "the last line ends the stream, and is answered at once", ended)?;
        let unknown = self.unknown().await;
        self.clause("6", "an upload for an unknown task is refused before it ends", unknown)?;
        Ok(())
    }

    async fn first_line(&self, channel: &mut Channel) -> Result<(TaskId, Frames, Upload), Broken> {
        let (task, mut answer) = self.first_chunk(channel).await?;
        let upload = self.peer.upload(&task)?;
        upload.send(1, &chunk(&piece(1))).await;
        expect_piece(&mut answer, 1).await?;
        Ok((task, answer, upload))
    }

    async fn repeated_line(&self, task: &TaskId, answer: &mut Frames) -> Result<(), Broken> {
        let upload = self.peer.upload(task)?;
        for number in 1..3 {
            upload.send(number, &chunk(&piece(number))).await;
        }
        expect_piece(answer, 2).await
    }

    async fn gap(&self, task: &TaskId) -> Result<(), Broken> {
        let mut upload = self.peer.upload(task)?;
        upload.send(4, &chunk(&piece(4))).await;
        let reply = upload.reply().await?.expect(&[409])?;
        so(reply.body["next"] == 3, || "its 409 does not say that part 3 is due".into())
    }

    async fn last_line(&self, task: &TaskId, answer: &mut Frames) -> Result<(), Broken> {
        let mut upload = self.peer.upload(task)?;
        upload.send(3, &ResultPart::DONE).await;
        let reply = upload.reply().await?.expect(&[200])?;
        so(reply.body["next"] == 4, || "its reply does not say that part 4 would be next".into())?;
        let end = next_data(answer).await?;
        so(end.as_deref() == Some(DONE), || "the caller's stream does not end with [DONE]".into())
    }

    async fn unknown(&self) -> Result<(), Broken> {
        let task = TaskId::new("mcprelay-check/../unknown").map_err(|why| Broken::Skip(why.to_string()))?;
        let mut upload = self.peer.upload(&task)?;
        upload.send(1, &chunk(&piece(1))).await;
        upload.reply().await?.expect(&[404, 410]).map(drop)
    }
}
