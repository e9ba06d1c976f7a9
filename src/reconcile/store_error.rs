//! Owns the errors of requests to the API server, and what each means for a write.
//! Never sends a request.

use std::time::Duration;

use thiserror::Error;
use tokio::time::timeout;

/// The timeout of one request to the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest message of the API server that is kept, in bytes.
const MAX_MESSAGE: usize = 1024;

/// An error of a request to the API server.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The API server refused the request or could not be reached.
    #[error("{0}")]
    Kube(kube::Error),
    /// No answer within the timeout.
    #[error("the API server did not answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout,
    /// The resource in the answer of the API server cannot be decoded; the text contains nothing of it.
    #[error("the stored resource cannot be decoded: {0}; correct or delete it")]
    Undecodable(String),
    /// The answer to a read of a Secret is not a Secret, or not a whole one.
    #[error("the API server's answer is not a complete Secret")]
    NotASecret,
    /// The API server rejected the status although nothing changed in between.
    #[error("the API server rejected the status: {0}; check that the installed CRD is of the operator's version")]
    Invalid(String),
}

impl From<kube::Error> for StoreError {
    /// Shortens the message of the API server: a webhook may have written it, and it ends up in the log.
    fn from(mut error: kube::Error) -> Self {
        if let kube::Error::Api(status) = &mut error {
            status.message.truncate(status.message.floor_char_boundary(MAX_MESSAGE));
            status.details = None;
        }
        Self::Kube(error)
    }
}

/// Returns true if the API server answered that it did not write: a test of the patch failed, the object is gone or
/// changed, or the content is invalid.
pub fn is_refused(error: &StoreError) -> bool {
    is_invalid(error) || matches!(code(error), Some(404 | 409))
}

/// Returns true if the API server rejected the content as invalid. The answer to a failed test of a patch looks the
/// same.
pub fn is_invalid(error: &StoreError) -> bool {
    matches!(code(error), Some(400 | 413 | 422))
}

impl StoreError {
    /// Returns true if the operator lacks the permission.
    pub fn is_forbidden(&self) -> bool {
        matches!(code(self), Some(403))
    }

    /// Returns true if the API server failed internally, for example because it cannot decrypt a Secret.
    pub fn is_internal(&self) -> bool {
        matches!(code(self), Some(500))
    }
}

fn code(error: &StoreError) -> Option<u16> {
    match error {
        StoreError::Kube(kube::Error::Api(status)) => Some(status.code),
        StoreError::Kube(_)
        | StoreError::Timeout
        | StoreError::Undecodable(_)
        | StoreError::NotASecret
        | StoreError::Invalid(_) => None,
    }
}

/// Waits for the answer to a request to the API server.
///
/// # Errors
/// If there is none within the timeout, or the request fails.
pub async fn within<T, E: Into<StoreError>>(request: impl Future<Output = Result<T, E>>) -> Result<T, StoreError> {
    timeout(REQUEST_TIMEOUT, request).await.map_err(|_| StoreError::Timeout)?.map_err(E::into)
}

/// Returns the answer to a request for one object: `None` if there is no such object.
///
/// # Errors
/// If the request fails in another way.
pub fn optional<T>(answer: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match answer {
        Err(StoreError::Kube(kube::Error::Api(status))) if status.is_not_found() => Ok(None),
        answer => answer.map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(code: u16) -> StoreError {
        let status = serde_json::from_value(serde_json::json!({"code": code})).unwrap();
        StoreError::Kube(kube::Error::Api(status))
    }

    #[test]
    fn each_answer_of_the_api_server_has_its_meaning_for_a_write() {
        for (code, refused, invalid, forbidden, internal) in [
            (400, true, true, false, false),
            (401, false, false, false, false),
            (403, false, false, true, false),
            (404, true, false, false, false),
            (409, true, false, false, false),
            (413, true, true, false, false),
            (422, true, true, false, false),
            (429, false, false, false, false),
            (500, false, false, false, true),
            (503, false, false, false, false),
        ] {
            let error = answered(code);
            assert_eq!(
                (is_refused(&error), is_invalid(&error), error.is_forbidden(), error.is_internal()),
                (refused, invalid, forbidden, internal),
                "{code}"
            );
        }
    }

    #[test]
    fn a_message_that_a_webhook_may_have_written_is_shortened() {
        let long =
            serde_json::json!({"code": 403, "message": "é".repeat(10_000), "details": {"name": "x".repeat(9_000)}});
        let error = StoreError::from(kube::Error::Api(serde_json::from_value(long).unwrap()));
        assert!(error.is_forbidden() && error.to_string().len() < 3 * MAX_MESSAGE, "{}", error.to_string().len());
    }

    #[test]
    fn without_an_answer_it_is_not_known_whether_something_was_written() {
        let errors = [
            StoreError::Timeout,
            StoreError::Undecodable(String::new()),
            StoreError::NotASecret,
            StoreError::Kube(kube::Error::LinesCodecMaxLineLengthExceeded),
        ];
        for error in errors {
            assert!(!is_refused(&error) && !is_invalid(&error) && !error.is_forbidden(), "{error}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_without_an_answer_times_out_after_ten_seconds() {
        let start = tokio::time::Instant::now();
        assert!(matches!(within(std::future::pending::<Result<(), StoreError>>()).await, Err(StoreError::Timeout)));
        assert_eq!(start.elapsed(), REQUEST_TIMEOUT);
    }
}
