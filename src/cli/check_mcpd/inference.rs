//! The clauses on tasks and results: the check plays the caller and the provider of each inference.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{
    Broken, Check,
    frames::Frames,
    peer::{Channel, Reply, Task, next_data},
    so,
};
use crate::{
    cli::Stop,
    domain::TaskId,
    upstream::contract::{ChunkPart, DONE, ResultPart},
};

impl Check {
    /// One inference whose answer is whole.
    pub(super) async fn plain(&mut self, channel: &mut Channel) -> Result<(), Stop> {
        let mut call = self.peer.infer(false);
        let came = channel.task(&self.peer.name).await;
        let came =
            came.and_then(|task| so(!task.streaming, || "its streaming is true".into()).map(|()| task));
        let Some(task) = self.clause("2", "an inference comes down the channel as a task", came)? else {
            return Ok(());
        };
        let same = as_sent(&task, &self.peer.question(false));
        self.clause("2", "a task carries the caller's whole body", same)?;

        let body = json!({"id": "check", "object": "chat.completion", "x_kept": 1, "choices": []});
        let taken = self.peer.post_status(&task.id, 200, &body, BTreeMap::new()).await;
        let answered = match taken.and_then(|reply| reply.expect(&[200])) {
            Ok(_) => call.reply().await.and_then(|reply| same_answer(&reply, 200, &body)),
            Err(error) => Err(error),
        };
        self.clause("3", "a plain result reaches the caller as it is", answered)?;

        let late = self.peer.post_status(&task.id, 200, &body, BTreeMap::new()).await.and_then(settled);
        self.clause("3", "a result after the end is settled", late)?;
        let unknown = match TaskId::new("mcprelay-check/../unknown") {
            Ok(id) => self
                .peer
                .post_status(&id, 200, &body, BTreeMap::new())
                .await
                .and_then(|reply| reply.expect(&[404, 410])),
            Err(why) => Err(Broken::Skip(why.to_string())),
        };
        self.clause("1", "a result of an unknown task is refused", unknown)?;
        Ok(())
    }

    /// One inference that fails with a status.
    pub(super) async fn failing(&mut self, channel: &mut Channel) -> Result<(), Stop> {
        let mut call = self.peer.infer(true);
        let body = json!({"error": {"message": "check", "type": "rate_limit_error", "code": "overloaded"}});
        let answer = match channel.task(&self.peer.name).await {
            Ok(task) => {
                let headers = BTreeMap::from([("retry-after", "7".to_owned())]);
                let posted = self
                    .peer
                    .post_status(&task.id, 429, &body, headers)
                    .await
                    .and_then(|reply| reply.expect(&[200]));
                match posted {
                    Ok(_) => call.reply().await,
                    Err(error) => Err(error),
                }
            }
            Err(error) => Err(error),
        };
        let retry_after = answer.as_ref().ok().and_then(|reply| reply.retry_after.clone());
        let failed = answer.and_then(|reply| same_answer(&reply, 429, &body));
        if self.clause("3", "a failure before any chunk keeps its status and body", failed)?.is_some() {
            let kept = retry_after.as_deref() == Some("7");
            let kept = if kept { Ok(()) } else { Err(Broken::Weak("the caller does not get it".into())) };
            self.clause("3", "a failure's retry-after reaches the caller", kept)?;
        }
        Ok(())
    }

    /// One inference whose answer is streamed.
    pub(super) async fn streaming(&mut self, channel: &mut Channel) -> Result<(), Stop> {
        let started = self.first_chunk(channel).await;
        let Some((task, mut answer)) =
            self.clause("3", "a chunk reaches the caller before the next is posted", started)?
        else {
            return Ok(());
        };
        let repeated = self.repeat(&task).await;
        self.clause("3", "a repeated part is accepted", repeated)?;
        let ended = self.rest(&task, &mut answer).await;
        self.clause("3", "chunks arrive once, in order, and end with [DONE]", ended)?;
        Ok(())
    }

    /// Starts a streaming inference and sees its first chunk through.
    pub(super) async fn first_chunk(&self, channel: &mut Channel) -> Result<(TaskId, Frames), Broken> {
        let mut call = self.peer.infer(true);
        let task = channel.task(&self.peer.name).await?;
        so(task.streaming, || "its task's streaming is false".into())?;
        self.peer.post(&task.id, 0, &chunk(&piece(0))).await?.expect(&[200])?;
        let response = call.response().await?;
        so(response.status() == 200, || format!("the caller gets {}", response.status()))?;
        let mut answer = Frames::new(response);
        expect_piece(&mut answer, 0).await?;
        Ok((task.id, answer))
    }

    async fn repeat(&self, task: &TaskId) -> Result<(), Broken> {
        match self.idempotent {
            true => self.peer.post(task, 0, &chunk(&piece(0))).await?.expect(&[200]).map(drop),
            false => Err(Broken::Skip(
                "mcpd does not offer idempotent-results, so the agent never repeats one".into(),
            )),
        }
    }

    async fn rest(&self, task: &TaskId, answer: &mut Frames) -> Result<(), Broken> {
        self.peer.post(task, 1, &chunk(&piece(1))).await?.expect(&[200])?;
        expect_piece(answer, 1).await?;
        self.peer.post(task, 2, &ResultPart::DONE).await?.expect(&[200])?;
        let end = next_data(answer).await?;
        so(end.as_deref() == Some(DONE), || "the caller's stream does not end with [DONE]".into())
    }

    /// One inference whose stream ends with an error.
    pub(super) async fn breaking(&mut self, channel: &mut Channel) -> Result<(), Stop> {
        let ended = match self.first_chunk(channel).await {
            Ok((task, mut answer)) => self.break_off(&task, &mut answer).await,
            Err(error) => Err(error),
        };
        self.clause("3", "an error in the middle ends the caller's stream without [DONE]", ended)?;
        Ok(())
    }

    async fn break_off(&self, task: &TaskId, answer: &mut Frames) -> Result<(), Broken> {
        self.peer.post(task, 1, &ResultPart::Error { error: "check" }).await?.expect(&[200])?;
        loop {
            match next_data(answer).await {
                Ok(Some(data)) if data == DONE => {
                    return Err(Broken::Not("the caller is told [DONE]".into()));
                }
                Ok(Some(_)) => {}
                // A connection that is cut says so too.
                Ok(None) | Err(Broken::Not(_)) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    /// One inference whose caller goes away.
    pub(super) async fn leaving(&mut self, channel: &mut Channel) -> Result<(), Stop> {
        let told = match self.first_chunk(channel).await {
            Ok((task, answer)) => {
                drop(answer);
                self.is_told(&task, channel).await
            }
            Err(error) => Err(error),
        };
        self.clause("2", "a caller that goes away cancels its task", told)?;
        Ok(())
    }

    async fn is_told(&self, task: &TaskId, channel: &mut Channel) -> Result<(), Broken> {
        if channel.is_cancelled(task, self.cancel_wait).await? {
            return Ok(());
        }
        let reply = self.peer.post(task, 1, &chunk(&piece(1))).await?;
        reply.expect(&[404, 410]).map(drop)?;
        Err(Broken::Weak(
            "no cancel comes; the next result is answered 404 or 410, which does as well".into(),
        ))
    }
}

/// The part that carries one chunk.
pub(super) fn chunk(data: &str) -> ResultPart<'_> {
    ResultPart::Chunk { chunk: ChunkPart { data, done: false } }
}

/// The check's chunk of this number.
pub(super) fn piece(number: u32) -> String {
    let choice = json!({"index": 0, "delta": {"content": format!("piece {number}")}, "finish_reason": null});
    json!({"id": "check", "object": "chat.completion.chunk", "choices": [choice]}).to_string()
}

/// The caller's next chunk is the check's chunk of this number.
pub(super) async fn expect_piece(answer: &mut Frames, number: u32) -> Result<(), Broken> {
    let data = next_data(answer).await?;
    let same = data.as_deref().is_some_and(|data| json_of(data) == json_of(&piece(number)));
    so(same, || format!("the caller does not get chunk {number} as it was posted"))
}

fn json_of(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok()
}

fn as_sent(task: &Task, sent: &Value) -> Result<(), Broken> {
    if task.request == *sent {
        return Ok(());
    }
    so(task.request["messages"] == sent["messages"], || "its messages are not the caller's".into())?;
    Err(Broken::Weak("its messages are the caller's, its other fields are not".into()))
}

fn same_answer(reply: &Reply, status: u16, body: &Value) -> Result<(), Broken> {
    so(reply.status == status, || format!("the caller gets {} and not {status}", reply.status))?;
    so(reply.body == *body, || "the caller gets another body".into())
}

/// mcpd's two ways to say that a task has ended already: gone, or applied before under the same key.
fn settled(reply: Reply) -> Result<(), Broken> {
    reply.expect(&[200, 404, 410]).map(drop)
}
