use super::Answer;
use crate::call::Framing;
/// stub
#[derive(Debug)]
pub struct Scanner;
/// stub
#[derive(Debug)]
pub struct ScanError;
impl ScanError {
    /// stub
    pub fn is_truncated(&self) -> bool {
        false
    }
}
impl std::fmt::Display for ScanError {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Ok(())
    }
}
impl Scanner {
    /// stub
    pub fn judging(_: Framing) -> Self {
        Self
    }
    /// stub
    pub fn decoding(_: Framing) -> Self {
        Self
    }
    /// stub
    pub fn keep_signature(self, _: bool) -> Self {
        self
    }
    /// stub
    pub fn max_image_bytes(self, _: u64) -> Self {
        self
    }
    /// stub
    pub fn feed(&mut self, _: &[u8]) -> Result<(), ScanError> {
        Ok(())
    }
    /// stub
    pub fn has_content(&self) -> bool {
        false
    }
    /// stub
    pub fn finish(self) -> Result<Answer, ScanError> {
        Ok(Answer::default())
    }
}
