//! Owns the fields of the API's JSON bodies, as they are decoded part by part, and the memory that they take.
//! Never fails on an unknown field, a null, an absent field, an integer sent as a double, or a text that is nearly JSON.

use std::marker::PhantomData;

use serde::de::{MapAccess, SeqAccess};
use serde_json::Number;
use workflow_run_stop_api::workflow_run::{ErrorData, RunDetails, RunError, TaskInstance};

use crate::amperity::run::{MAX_DATA_BYTES, MAX_DATA_DEPTH, Run, TaskSelection, details_memory, error_memory};
use crate::amperity::{
    answer_memory::{Held, Share},
    json_part::{check, field, part},
    lenient_json::{
        AnyNumber, Bounded, Fields, LenientVisitor, Object, Objects, Text, TextOrNumber, item, skip, skip_items, value,
    },
    reply::{Body, Shape},
};
use crate::json_stream::{Container, Malformed, Part, Piece};

/// The fields that are decoded child by child.
pub const NESTED: &[&str] = &["task_instances", "error"];

/// The fields of a run and of an error object.
#[derive(Default)]
pub struct BodyFields {
    id: Option<String>,
    state: Option<String>,
    error: ErrorValue,
    tasks: Option<TaskSelection>,
    details: RunDetails,
    message: Option<String>,
    request_id: Option<String>,
    trace_id: Option<String>,
    status: Option<Number>,
    /// True before the first item of an array of errors.
    before_first_error: bool,
}

impl BodyFields {
    /// Decodes a part of the body.
    pub fn add(&mut self, part_of_body: Part<'_>, share: &mut Share) -> Result<(), Malformed> {
        match part_of_body {
            Part::Field { key, value } => {
                let (before, tasks_before) = (self.memory(), self.tasks_memory());
                field(self, key, value)?;
                share.put_back(tasks_before - self.tasks_memory());
                self.share_memory(before, share, |fields| field(fields, key, Piece::TooLarge))
            }
            Part::Start { field: "error", container } => {
                let before = self.memory();
                self.before_first_error = container == Container::Array;
                self.error = match container {
                    Container::Array => ErrorValue::Absent,
                    Container::Object => ErrorValue::Object(RunError::default()),
                };
                self.share_memory(before, share, |_| Ok(()))
            }
            Part::Start { field: _, container } => {
                share.put_back(self.tasks_memory());
                self.tasks = (container == Container::Array).then(TaskSelection::default);
                Ok(())
            }
            Part::Item { field: "error", value } if self.before_first_error => {
                self.before_first_error = false;
                let before = self.memory();
                let error = part(value, Object(PhantomData))?.flatten();
                self.error = error.map_or(ErrorValue::Absent, ErrorValue::Object);
                self.share_memory(before, share, |fields| {
                    fields.error = ErrorValue::Absent;
                    Ok(())
                })
            }
            Part::Item { field: "task_instances", value } => self.add_task(value, share),
            Part::Member { field: "error", key, value } => {
                let before = self.memory();
                let ErrorValue::Object(error) = &mut self.error else { return Err(Malformed) };
                field(error, key, value)?;
                self.share_memory(before, share, |fields| match &mut fields.error {
                    ErrorValue::Object(error) => field(error, key, Piece::TooLarge),
                    ErrorValue::Text | ErrorValue::Absent => Ok(()),
                })
            }
            Part::Item { field: _, value } => check(value),
            Part::Member { field: _, key, value } => check(key).and_then(|()| check(value)),
        }
    }

    /// Decodes an item of the tasks. One that is not an object is no task.
    fn add_task(&mut self, item: Piece<'_>, share: &mut Share) -> Result<(), Malformed> {
        let is_other = item.json().is_some_and(|json| !json.starts_with(b"{"));
        match self.tasks.as_mut().filter(|_| !is_other) {
            Some(tasks) if !tasks.is_full() => match part(item, Object(PhantomData))?.flatten() {
                Some(task) => tasks.add(task, share),
                None => tasks.omit(),
            },
            // What is not kept anyway is not decoded.
            Some(tasks) => {
                check(item)?;
                tasks.omit();
            }
            None => check(item)?,
        }
        Ok(())
    }

    /// Returns the body with these fields. A run keeps `memory`, the share of the answer.
    pub fn into_body(self, memory: Held) -> Body {
        let BodyFields {
            id,
            state,
            error,
            tasks,
            details,
            message,
            request_id,
            trace_id,
            status,
            before_first_error: _,
        } = self;
        let (error, oauth_error) = match error {
            ErrorValue::Object(error) => (Some(error), false),
            ErrorValue::Text => (None, true),
            ErrorValue::Absent => (None, false),
        };
        let (tasks, omitted) = tasks.map(TaskSelection::finish).unzip();
        let tasks_omitted = omitted.unwrap_or_default();
        Body {
            run: id.zip(state).map(|(id, state)| Run { id, state, error, tasks, tasks_omitted, details, memory }),
            message,
            request_id: request_id.or(trace_id),
            error_status: status.as_ref().and_then(http_status),
            oauth_error,
            shape: Shape::Object,
        }
    }

    fn tasks_memory(&self) -> usize {
        self.tasks.as_ref().map_or(0, TaskSelection::memory)
    }

    /// Returns the memory that the error and the details take. The other fields, five texts and a number, are always kept:
    /// the class of an answer depends on them.
    fn memory(&self) -> usize {
        let error = match &self.error {
            ErrorValue::Object(error) => error_memory(error),
            ErrorValue::Text | ErrorValue::Absent => 0,
        };
        error + details_memory(&self.details)
    }

    /// Takes the memory for what was added since the fields took `before` bytes. If it is not free, tasks are omitted; if
    /// that is not enough, the addition is removed. Omitted tasks are counted, and an absent field is not.
    fn share_memory(
        &mut self,
        before: usize,
        share: &mut Share,
        remove: impl FnOnce(&mut Self) -> Result<(), Malformed>,
    ) -> Result<(), Malformed> {
        let now = self.memory();
        let Some(more @ 1..) = now.checked_sub(before) else {
            share.put_back(before.saturating_sub(now));
            return Ok(());
        };
        while !share.could_take(more) && self.tasks.as_mut().is_some_and(|tasks| tasks.omit_last(share)) {}
        if !share.take(more) {
            remove(self)?;
            share.put_back(before.saturating_sub(self.memory()));
        }
        Ok(())
    }
}

impl Fields for BodyFields {
    fn decode_field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "id" => self.id = value(map, TextOrNumber)?,
            "state" => self.state = value(map, TextOrNumber)?,
            "error" => self.error = value(map, ErrorValue::Absent)?,
            "task_instances" => self.tasks = value(map, Objects::<TaskInstance, _>(PhantomData))?,
            "name" => self.details.name = value(map, TextOrNumber)?,
            "type" => self.details.r#type = value(map, TextOrNumber)?,
            "created_at" => self.details.created_at = value(map, TextOrNumber)?,
            "ended_at" => self.details.ended_at = value(map, TextOrNumber)?,
            "launched_version" => self.details.launched_version = value(map, TextOrNumber)?,
            "current_version" => self.details.current_version = value(map, TextOrNumber)?,
            "principal_id" => self.details.principal_id = value(map, TextOrNumber)?,
            "principal_name" => self.details.principal_name = value(map, TextOrNumber)?,
            "principal_email" => self.details.principal_email = value(map, TextOrNumber)?,
            "warn_after_ms" => self.details.warn_after_ms = milliseconds(map)?,
            "message" => self.message = value(map, Text)?,
            "request_id" => self.request_id = value(map, TextOrNumber)?,
            "trace_id" => self.trace_id = value(map, TextOrNumber)?,
            "status" => self.status = value(map, AnyNumber)?,
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl Fields for TaskInstance {
    fn decode_field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "id" => self.id = value(map, TextOrNumber)?,
            "run_id" => self.run_id = value(map, TextOrNumber)?,
            "workflow_id" => self.workflow_id = value(map, TextOrNumber)?,
            "label" => self.label = value(map, TextOrNumber)?,
            "state" => self.state = value(map, TextOrNumber)?,
            "execution_type" => self.execution_type = value(map, TextOrNumber)?,
            "task_definition_id" => self.task_definition_id = value(map, TextOrNumber)?,
            "task_definition_type" => self.task_definition_type = value(map, TextOrNumber)?,
            "tenant" => self.tenant = value(map, TextOrNumber)?,
            "timeout_ms" => self.timeout_ms = milliseconds(map)?,
            "created_at" => self.created_at = value(map, TextOrNumber)?,
            "state_changed_at" => self.state_changed_at = value(map, TextOrNumber)?,
            "ended_at" => self.ended_at = value(map, TextOrNumber)?,
            "error" => {
                self.error = match value(map, ErrorValue::Absent)? {
                    ErrorValue::Object(error) => Some(error),
                    ErrorValue::Text | ErrorValue::Absent => None,
                }
            }
            _ => skip(map)?,
        }
        Ok(())
    }
}

impl Fields for RunError {
    fn decode_field<'de, A: MapAccess<'de>>(&mut self, key: &str, map: &mut A) -> Result<(), A::Error> {
        match key {
            "attribution" => self.attribution = value(map, TextOrNumber)?,
            "type" => self.r#type = value(map, TextOrNumber)?,
            "message" => self.message = value(map, TextOrNumber)?,
            "data" => {
                let data = value(map, Bounded { bytes: MAX_DATA_BYTES, depth: MAX_DATA_DEPTH })?;
                self.data = data.map(ErrorData::from);
            }
            _ => skip(map)?,
        }
        Ok(())
    }
}

/// The value of a field `error`. <https://docs.amperity.com/api/endpoint_get_workflows_fetch.html> calls it an array
/// and shows an object: both are accepted, and of an array the first item counts. An OAuth server sends a text.
#[derive(Default)]
enum ErrorValue {
    Object(RunError),
    Text,
    #[default]
    Absent,
}

impl LenientVisitor for ErrorValue {
    type Value = Self;

    fn text(self, _: &str) -> Self {
        Self::Text
    }

    fn array<'de, A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        let first = item(&mut items, Object(PhantomData))?;
        skip_items(&mut items)?;
        Ok(first.flatten().map_or(Self::Absent, Self::Object))
    }

    fn object<'de, A: MapAccess<'de>>(self, fields: A) -> Result<Self, A::Error> {
        let error = Object(PhantomData).object(fields)?;
        Ok(error.map_or(Self::Absent, Self::Object))
    }
}

fn milliseconds<'de, A: MapAccess<'de>>(map: &mut A) -> Result<Option<i64>, A::Error> {
    Ok(value(map, AnyNumber)?.as_ref().map(integer))
}

/// Converts a number to an integer; the API sends some integers as doubles.
pub fn integer(number: &Number) -> i64 {
    // The cast saturates; a fraction of a millisecond has no meaning here.
    number.as_i64().or_else(|| number.as_f64().map(|double| double as i64)).unwrap_or_default()
}

/// Converts a number to an HTTP status, also from a double without a fraction.
fn http_status(number: &Number) -> Option<u16> {
    let whole = number.as_f64().filter(|double| double.fract() == 0.0)?;
    (100.0..=999.0).contains(&whole).then_some(whole as u16)
}
