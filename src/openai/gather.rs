//! A plain task that is answered by chunks: they are gathered into one body.
