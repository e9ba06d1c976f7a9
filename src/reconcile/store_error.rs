//! Owns what can go wrong at the API server, and what each failure means for a write.
//! Never sends anything by itself.

use std::time::Duration;

use thiserror::Error;
use tokio::time::timeout;

/// The limit for one request to the API server.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the API server gave no answer that can be used.
#[derive(Debug, Error)]
pub enum StoreError {
    /// The API server refused or could not be reached.
    #[error("{0}")]
    Kube(#[from] kube::Error),
    /// It did not answer in time.
    #[error("the API server did not answer within {} s", REQUEST_TIMEOUT.as_secs())]
    Timeout,
    /// It does not take what was written although nothing changed in between.
    #[error("the API server does not take the status; is the CRD of another version installed? {0}")]
    Invalid(String),
}

/// True where the API server answered that it does not write this: a test of the patch failed, the
/// object is gone or changed, or the content is not valid.
pub fn is_refused(error: &StoreError) -> bool {
    is_invalid(error) || matches!(code(error), Some(404 | 409))
}

/// True for the answers of the API server to content that it does not take, and to a failed test.
pub fn is_invalid(error: &StoreError) -> bool {
    matches!(code(error), Some(400 | 413 | 422))
}

impl StoreError {
    /// True where the operator lacks the right.
    pub fn is_forbidden(&self) -> bool {
        matches!(code(self), Some(403))
    }

    /// True where the API server answers, but cannot do it: a Secret that cannot be decrypted, say.
    pub fn is_internal(&self) -> bool {
        matches!(code(self), Some(500))
    }
}

fn code(error: &StoreError) -> Option<u16> {
    match error {
        StoreError::Kube(kube::Error::Api(status)) => Some(status.code),
        StoreError::Kube(_) | StoreError::Timeout | StoreError::Invalid(_) => None,
    }
}

/// Waits for an answer of the API server, within its limit.
///
/// # Errors
/// Where there is none in time, or it is a refusal.
pub async fn within<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, StoreError> {
    timeout(REQUEST_TIMEOUT, request).await.map_err(|_| StoreError::Timeout)?.map_err(StoreError::Kube)
}
