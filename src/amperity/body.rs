//! Owns the decoding of the API's JSON bodies while they arrive, and the memory for the value that is incomplete.
//! Never holds a whole body.

use std::time::Duration;

use serde::de::MapAccess;
use serde_json::Number;

use crate::amperity::{
    answer_memory::{Held, Share},
    body_fields::{BodyFields, NESTED, integer},
    json_part::{MAX_VALUE_BYTES, field},
    lenient_json::{AnyNumber, Fields, WholeText, skip, value},
    reply::{Body, Shape},
};
use crate::json_stream::{Limits, Part, Splitter};

/// The largest key that can be a known one, in bytes of JSON: each character may be escaped.
const MAX_KEY_BYTES: usize = 256;

/// The largest token, in bytes of JSON: no server accepts so large a header.
const MAX_TOKEN_BYTES: usize = 64 * 1024;

/// The part of an incomplete value that is not counted in the share, in bytes, so that every field that decides about the
/// class of an answer is decoded even if no memory is free.
const UNCOUNTED_VALUE_BYTES: usize = 16 * 1024;

/// The size of the parts in which a chunk is decoded, in bytes: memory is taken for at most one more than is needed.
const CHUNK_BYTES: usize = 16 * 1024;

/// Decodes a body that arrives in chunks, or only its shape if it is not a JSON object. A run needs only `id` and `state`:
/// the other fields vary between <https://docs.amperity.com/api/endpoint_post_workflows_stop.html> and
/// <https://docs.amperity.com/api/endpoint_get_workflows_fetch.html>, and none of them can make the run undecodable.
///
/// A value that is larger than [`MAX_VALUE_BYTES`] or gets no share of the memory is absent, and a task is omitted.
pub struct BodyDecoder {
    splitter: Splitter,
    /// `None` once the text is not a JSON object.
    fields: Option<BodyFields>,
    share: Share,
    /// The bytes of the share that are taken for an incomplete value.
    value_share: usize,
    /// True while there was only white space.
    blank: bool,
}

impl BodyDecoder {
    /// Creates a decoder that takes memory from this share.
    pub fn new(share: Share) -> Self {
        let limits = Limits { key: MAX_KEY_BYTES, field: MAX_VALUE_BYTES, child: MAX_VALUE_BYTES };
        let (splitter, fields) = (Splitter::new(NESTED, limits), Some(BodyFields::default()));
        Self { splitter, fields, share, value_share: 0, blank: true }
    }

    /// Decodes the next bytes.
    pub fn push(&mut self, chunk: &[u8]) {
        self.blank &= chunk.trim_ascii().is_empty();
        for chunk in chunk.chunks(CHUNK_BYTES) {
            self.push_chunk(chunk);
        }
    }

    fn push_chunk(&mut self, chunk: &[u8]) {
        self.share_value(chunk.len());
        let Self { splitter, fields: Some(fields), share, .. } = self else { return };
        let mut decoded = Ok(());
        let split = splitter.push(chunk, &mut |part| {
            if decoded.is_ok() {
                decoded = fields.add(part, share);
            }
        });
        if split.and(decoded).is_err() {
            *self = Self { fields: None, blank: self.blank, ..Self::new(Share::default()) };
        }
        self.share_value(0);
    }

    /// Takes or returns memory, so that there is enough for the incomplete value and this number of further bytes. If
    /// there is not enough, the limit for values stays as it is.
    fn share_value(&mut self, more: usize) {
        let needed = (self.splitter.held() + more).next_power_of_two().min(MAX_VALUE_BYTES);
        let needed = needed.saturating_sub(UNCOUNTED_VALUE_BYTES);
        if needed <= self.value_share {
            self.share.put_back(self.value_share - needed);
            self.value_share = needed;
        } else if self.share.take(needed - self.value_share) {
            self.value_share = needed;
        }
        self.splitter.limit_values(UNCOUNTED_VALUE_BYTES + self.value_share);
    }

    /// Returns the decoded body.
    pub fn finish(mut self) -> Body {
        self.share.put_back(self.value_share);
        let Some(fields) = self.fields.filter(|_| self.splitter.finish().is_ok()) else {
            let shape = if self.blank { Shape::Empty } else { Shape::Other };
            return Body { shape, ..Body::default() };
        };
        fields.into_body(Held::from(self.share))
    }
}

/// Decodes the response of a token endpoint that arrives in chunks.
pub struct TokenDecoder {
    splitter: Splitter,
    /// `None` once the text is not a JSON object.
    fields: Option<TokenResponse>,
}

impl Default for TokenDecoder {
    fn default() -> Self {
        let limits = Limits { key: MAX_KEY_BYTES, field: MAX_TOKEN_BYTES, child: 0 };
        Self { splitter: Splitter::new(&[], limits), fields: Some(TokenResponse::default()) }
    }
}

impl TokenDecoder {
    /// Decodes the next bytes.
    pub fn push(&mut self, chunk: &[u8]) {
        let Self { splitter, fields: Some(fields) } = self else { return };
        let mut decoded = Ok(());
        let split = splitter.push(chunk, &mut |part| {
            if let (Ok(()), Part::Field { key, value }) = (decoded, part) {
                decoded = field(fields, key, value);
            }
        });
        if split.and(decoded).is_err() {
            self.fields = None;
        }
    }

    /// Returns the access token and its lifetime: one hour if the response has none, as in the example of
    /// <https://docs.amperity.com/api/authentication.html>.
    pub fn finish(self) -> Option<(String, Duration)> {
        self.splitter.finish().ok()?;
        let TokenResponse { access_token, expires_in } = self.fields?;
        // A token that had to be repaired is not the one that was issued.
        let token = access_token.filter(|token| !token.contains(char::REPLACEMENT_CHARACTER))?;
        let seconds = expires_in.as_ref().map(integer).and_then(|seconds| u64::try_from(seconds).ok());
        // At most a day, so that an absurd number cannot overflow an instant.
        Some((token, Duration::from_secs(seconds.unwrap_or(3600).min(86_400))))
    }
}

/// The fields of a response of the token endpoint.
#[derive(Default)]
struct TokenResponse {
    access_token: Option<String>,
    expires_in: Option<Number>,
}

impl Fields for TokenResponse {
    fn decode_field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "access_token" => self.access_token = value(map, WholeText)?,
            "expires_in" => self.expires_in = value(map, AnyNumber)?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amperity::{
        answer_memory::AnswerMemory,
        endpoint::{AllowedHosts, BudgetKey, Endpoints},
        json_part::MAX_VALUE_BYTES,
    };

    fn tenant(name: &str) -> BudgetKey {
        let endpoints = Endpoints::new("https://app.amperity.com", AllowedHosts::parse("").unwrap()).unwrap();
        endpoints.of(name, None).unwrap().budget_key()
    }

    /// Decodes a body in small chunks with a share of this memory.
    fn decoded(memory: &AnswerMemory, body: &str) -> Body {
        let mut decoder = BodyDecoder::new(memory.share(tenant("acme")));
        body.as_bytes().chunks(1000).for_each(|chunk| decoder.push(chunk));
        decoder.finish()
    }

    /// Returns a task in this state whose label has this size.
    fn task(state: &str, bytes: usize) -> String {
        format!(r#"{{"state":"{state}","label":"{}"}}"#, "x".repeat(bytes))
    }

    fn run_with(fields: &str, tasks: &[String]) -> String {
        format!(
            r#"{{{fields},"task_instances":[{}],"id":"wf-1","state":"x","status":500,"message":"m"}}"#,
            tasks.join(",")
        )
    }

    #[test]
    fn a_task_that_is_too_large_is_omitted_and_counted_and_a_field_is_absent() {
        let memory = AnswerMemory::new(100 * MAX_VALUE_BYTES);
        let (huge, repaired) = ("x".repeat(MAX_VALUE_BYTES), "\0".repeat(MAX_VALUE_BYTES / 2));
        let tasks = [task("a", MAX_VALUE_BYTES), task("b", 10), format!(r#"{{"later":"{repaired}"}}"#), "7".to_owned()];
        let fields = format!(r#""name":"n","name":"{huge}","error":{{"type":"t","message":"{huge}"}},"{huge}":1"#);
        let run = decoded(&memory, &run_with(&fields, &tasks)).run.unwrap();
        let states: Vec<_> = run.tasks.unwrap().into_iter().map(|task| task.state.unwrap()).collect();
        assert_eq!((states, run.tasks_omitted), (vec!["b".to_owned()], 2));
        assert_eq!(run.details.name, None);
        let error = run.error.unwrap();
        assert_eq!((error.r#type.as_deref(), error.message), (Some("t"), None));
    }

    #[test]
    fn without_free_memory_all_is_decoded_that_the_class_of_an_answer_depends_on() {
        let memory = AnswerMemory::new(0);
        // More than is not counted.
        let tasks: Vec<_> = (0..100).map(|_| task("failed", 900)).collect();
        let texts: Vec<_> = ["name", "type"].map(|key| format!(r#""{key}":"{}""#, "x".repeat(4000))).into();
        let body = decoded(&memory, &run_with(&texts.join(","), &tasks));
        let run = body.run.unwrap();
        assert_eq!((run.id.as_str(), run.state.as_str()), ("wf-1", "x"));
        assert_eq!((body.message.as_deref(), body.error_status), (Some("m"), Some(500)));
        let kept = run.tasks.unwrap().len();
        assert!(0 < kept && kept < 10, "{kept}");
        assert_eq!(kept + run.tasks_omitted, 100);
        let fields = format!(r#"{},"error":{{"message":"{}"}}"#, texts.join(","), "x".repeat(4000));
        let mut more = ["ended_at", "created_at"].map(|key| format!(r#""{key}":"{}""#, "x".repeat(4000)));
        more[1].push_str(r#","principal_id":"short""#);
        let run = decoded(&memory, &run_with(&format!("{fields},{}", more.join(",")), &[])).run.unwrap();
        assert_eq!(run.error.unwrap().message.map(|text| text.len()), Some(4000));
        assert_eq!(run.details.created_at, None, "it gets no share");
        assert_eq!(run.details.principal_id.as_deref(), Some("short"), "it needs no share");
    }

    #[test]
    fn the_largest_number_of_tasks_fits_into_the_memory_for_one_tenant() {
        let body = run_with(r#""name":"n""#, &vec![r#"{"id":"wft-1","state":"failed","label":"x"}"#.to_owned(); 4000]);
        let run = decoded(&AnswerMemory::default(), &body).run.unwrap();
        assert_eq!((run.tasks.unwrap().len(), run.tasks_omitted), (3200, 800), "as many as fit into a status");
    }

    #[test]
    fn important_tasks_take_the_memory_of_successful_ones() {
        let memory = AnswerMemory::new(100_000);
        let tasks = [vec![task("succeeded", 2000); 30], vec![task("failed", 2000); 10]].concat();
        let run = decoded(&memory, &run_with(r#""name":"n""#, &tasks)).run.unwrap();
        let kept: Vec<_> = run.tasks.unwrap().into_iter().map(|task| task.state.unwrap()).collect();
        let (succeeded, failed) = kept.split_at(kept.len() - 10);
        assert!(failed.iter().all(|state| state == "failed"), "{kept:?}");
        assert!(!succeeded.is_empty() && succeeded.iter().all(|state| state == "succeeded"), "{kept:?}");
        assert_eq!(kept.len() + run.tasks_omitted, 40);
    }

    #[test]
    fn without_free_memory_tasks_give_way_to_the_error_and_the_details() {
        let memory = AnswerMemory::new(0);
        let tasks = [vec![task("succeeded", 1000); 4], vec![task("failed", 1000); 4]].concat();
        let body = format!(
            r#"{{"task_instances":[{}],"error":{{"message":"{}"}},"name":"{}","id":"wf-1","state":"x"}}"#,
            tasks.join(","),
            "m".repeat(4000),
            "n".repeat(4000)
        );
        let run = decoded(&memory, &body).run.unwrap();
        assert_eq!(run.error.unwrap().message.map(|text| text.len()), Some(4000));
        assert_eq!(run.details.name.map(|text| text.len()), Some(4000));
        let kept: Vec<_> = run.tasks.unwrap().into_iter().map(|task| task.state.unwrap()).collect();
        assert!(!kept.is_empty() && kept.iter().all(|state| state == "failed"), "{kept:?}");
        assert_eq!(kept.len() + run.tasks_omitted, 8);
    }

    #[test]
    fn the_memory_of_an_answer_is_free_again_when_its_run_is_dropped() {
        let memory = AnswerMemory::new(1_000_000);
        let tasks = vec![task("failed", 2000); 50];
        let body =
            run_with(r#""name":"n","task_instances":[{"label":"replaced"}],"error":{"type":"t"},"error":null"#, &tasks);
        let free = || memory.free();
        let run = decoded(&memory, &body).run.unwrap();
        assert!((700_000..900_000).contains(&free()), "the tasks take a share: {}", free());
        let copy = run.clone();
        drop(run);
        assert!(free() < 900_000);
        drop(copy);
        assert_eq!(free(), 1_000_000);
        for body in
            [&body[..body.len() - 1], &body.replace("wf-1", "\n\"x"), &format!("[{body}]"), "{\"message\":\"m\"}"]
        {
            let decoded = decoded(&memory, body);
            assert_eq!((decoded.run, free()), (None, 1_000_000), "an answer without a run takes nothing");
        }
        let mut broken_off = BodyDecoder::new(memory.share(tenant("acme")));
        broken_off.push(&body.as_bytes()[..body.len() / 2]);
        broken_off.push("x".repeat(100_000).as_bytes());
        assert!(free() < 1_000_000);
        drop(broken_off);
        assert_eq!(free(), 1_000_000);
    }

    #[test]
    fn a_large_value_takes_memory_only_until_it_is_complete() {
        let memory = AnswerMemory::new(3 * MAX_VALUE_BYTES);
        let mut decoder = BodyDecoder::new(memory.share(tenant("acme")));
        decoder.push(br#"{"id":"wf-1","state":"x","later":""#);
        let before = memory.free();
        decoder.push(&[b'x'; 500_000]);
        assert!(memory.free() + 500_000 - UNCOUNTED_VALUE_BYTES <= before, "{} {before}", memory.free());
        decoder.push(br#"","name":"n"}"#);
        assert_eq!(memory.free(), before);
        assert_eq!(decoder.finish().run.unwrap().details.name.as_deref(), Some("n"));
    }

    #[test]
    fn a_token_of_64_kib_is_decoded_and_a_larger_one_is_absent() {
        for (bytes, found) in [(MAX_TOKEN_BYTES - 2, true), (MAX_TOKEN_BYTES - 1, false)] {
            let mut decoder = TokenDecoder::default();
            let body = format!(r#"{{"access_token":"{}"}}"#, "x".repeat(bytes));
            body.as_bytes().chunks(1000).for_each(|chunk| decoder.push(chunk));
            assert_eq!(decoder.finish().is_some(), found, "{bytes}");
        }
    }
}
