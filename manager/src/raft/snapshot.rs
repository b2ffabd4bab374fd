//! Snapshots: a header and the state's rows, as they travel between managers.
//!
//! Depends on the store's views. Invariant: a snapshot is the rows of one commit and the position they stand for; an
//! incomplete one is never installed.
use super::types::{SnapshotMeta, TypeConfig};
use super::wire::{header_in, header_out, invalid, meta_from, row_key_bytes};
use crate::codec::{decode_row, encode_row};
use crate::store::{Row as StoredRow, RowsView, Store, StoreError};
use keyhole_proto::v1;
use keyhole_state::Row;
use openraft::RaftSnapshotBuilder;
use openraft::alias::SnapshotOf;
use prost::Message;
use std::io;
use std::sync::Arc;
use tokio::sync::oneshot;

/// One chunk carries rows up to about this size.
const CHUNK_BYTES: usize = 1 << 20;

/// A snapshot's content.
pub enum SnapshotData {
    /// Rows of this manager's own store.
    Own(RowsView),
    /// Rows that came from another manager, whole and every one checked.
    Received(Vec<Row>),
}

impl SnapshotData {
    /// Gives the chunks to send, in order, until `send` says `false`. Blocks: not for an async task.
    pub fn chunks(
        &self,
        meta: &SnapshotMeta,
        send: &mut dyn FnMut(v1::SnapshotChunk) -> bool,
    ) -> io::Result<()> {
        use v1::snapshot_chunk::Chunk;
        let chunk = |chunk| v1::SnapshotChunk { chunk: Some(chunk) };
        let mut count = 0;
        self.rows(&mut |_| {
            count += 1;
            true
        })?;
        if !send(chunk(Chunk::Header(header_out(meta, count)))) {
            return Ok(());
        }
        let (mut batch, mut bytes, mut open) = (Vec::new(), 0, true);
        self.rows(&mut |row| {
            bytes += row.encoded_len();
            batch.push(row);
            if bytes >= CHUNK_BYTES {
                bytes = 0;
                let rows = std::mem::take(&mut batch);
                open = send(chunk(Chunk::Rows(v1::RowBatch { rows })));
            }
            open
        })?;
        if open && !batch.is_empty() {
            send(chunk(Chunk::Rows(v1::RowBatch { rows: batch })));
        }
        Ok(())
    }

    /// Gives each row, in no particular order, until `visit` says `false`. Blocks: not for an async task.
    pub(crate) fn rows(&self, visit: &mut dyn FnMut(v1::Row) -> bool) -> io::Result<()> {
        match self {
            Self::Received(rows) => {
                let _ = rows.iter().map(encode_row).all(visit);
                Ok(())
            }
            Self::Own(view) => {
                let mut broken = None;
                view.for_each(&mut |(_, value)| match v1::Row::decode(&*value) {
                    Ok(row) => visit(row),
                    Err(error) => {
                        broken = Some(invalid(format!("state row: {error}")));
                        false
                    }
                })?;
                broken.map_or(Ok(()), Err)
            }
        }
    }

    /// The rows, every one checked.
    pub(crate) fn into_rows(self) -> io::Result<Vec<Row>> {
        if let Self::Received(rows) = self {
            return Ok(rows);
        }
        let (mut rows, mut broken) = (Vec::new(), None);
        self.rows(&mut |record| match checked(record) {
            Ok(row) => {
                rows.push(row);
                true
            }
            Err(error) => {
                broken = Some(error);
                false
            }
        })?;
        broken.map_or(Ok(rows), Err)
    }
}

fn checked(record: v1::Row) -> io::Result<Row> {
    decode_row(record).map_err(|error| invalid(format!("state row: {error}")))
}

/// Rows as the store has them, each made when it is asked for: a snapshot is in memory once.
pub(crate) struct StoredRows {
    /// Given back with the last row.
    rows: Option<Arc<Vec<Row>>>,
    next: usize,
}

impl StoredRows {
    pub(crate) fn new(rows: Arc<Vec<Row>>) -> Self {
        Self { rows: Some(rows), next: 0 }
    }
}

impl Iterator for StoredRows {
    type Item = StoredRow;

    fn next(&mut self) -> Option<StoredRow> {
        let row = self.rows.as_ref()?.get(self.next);
        let stored = row.map(|row| (row_key_bytes(&row.key()), encode_row(row).encode_to_vec()));
        self.next += 1;
        if stored.is_none() {
            self.rows = None;
        }
        stored
    }
}

/// Puts a snapshot together again from its chunks.
#[derive(Default)]
pub struct SnapshotInput {
    header: Option<v1::SnapshotHeader>,
    rows: Vec<Row>,
}

impl SnapshotInput {
    /// Takes the next chunk.
    pub fn push(&mut self, chunk: v1::SnapshotChunk) -> io::Result<()> {
        use v1::snapshot_chunk::Chunk;
        match (chunk.chunk, &self.header) {
            (Some(Chunk::Header(header)), None) => self.header = Some(header),
            (Some(Chunk::Rows(batch)), Some(_)) => {
                for record in batch.rows {
                    self.rows.push(checked(record)?);
                }
            }
            _ => return Err(invalid("a snapshot's chunks are out of order".to_owned())),
        }
        Ok(())
    }

    /// The snapshot, if all of it came.
    pub fn finish(self) -> io::Result<(SnapshotMeta, SnapshotData)> {
        let header = self.header.ok_or_else(|| invalid("a snapshot has no header".to_owned()))?;
        let (expected, found) = (header.rows, self.rows.len() as u64);
        if expected != found {
            return Err(invalid(format!("a snapshot has {found} of its {expected} rows")));
        }
        Ok((header_in(header)?, SnapshotData::Received(self.rows)))
    }
}

/// Builds a snapshot of the state as of the moment it was asked for.
pub struct SnapshotBuilder {
    view: Option<oneshot::Receiver<Result<RowsView, StoreError>>>,
}

impl SnapshotBuilder {
    /// Takes its place in the store's queue: rows handed in later are not in the snapshot.
    pub(crate) fn new(store: &Arc<Store>) -> Self {
        let (sender, receiver) = oneshot::channel();
        store.view(Box::new(move |view| drop(sender.send(view))));
        Self { view: Some(receiver) }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, SnapshotData>> {
        let view =
            self.view.take().ok_or_else(|| invalid("a snapshot is built once".to_owned()))?;
        let view = view.await.unwrap_or(Err(StoreError::Stopped))?;
        let meta = view.applied().map(meta_from).transpose()?.unwrap_or_default();
        Ok(SnapshotOf::<TypeConfig, _> { meta, snapshot: SnapshotData::Own(view) })
    }
}
