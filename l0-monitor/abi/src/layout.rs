//! Where L0's arrays are and how long their elements: as its header says, which may be of another release than the reader.

use crate::header::{FAMILY, HEADER_MIN, MAGIC};
use crate::{Header, KeptRecord, KeptRing, LogRing, PoolExtent, SLOTS, Slot, TraceRing};
use core::mem::offset_of;

/// Bytes of a [`CpuStatus`](crate::CpuStatus) in the first release.
pub const FIRST_CPU_STATUS_SIZE: u32 = 704;
/// CPUs in the status of the first release.
pub const FIRST_CPU_CAPACITY: u32 = 64;
/// Bytes of a [`HostStatus`](crate::HostStatus) in the first release.
pub const FIRST_HOST_STATUS_SIZE: u32 = 40;
/// Bytes of a [`TraceRecord`](crate::TraceRecord) in the first release.
pub const FIRST_TRACE_RECORD_SIZE: u32 = 32;
/// Channels of the first release.
pub const FIRST_CHANNEL_COUNT: u32 = 4;
/// Bytes of a [`ChannelRing`](crate::ChannelRing) in the first release.
pub const FIRST_CHANNEL_RING_SIZE: u32 = 69632;
/// Offset of the first [`HostStatus`](crate::HostStatus) in the status of the first release.
pub const FIRST_STATUS_HOSTS: u32 = 8;
/// Offset of the first [`CpuStatus`](crate::CpuStatus) in the status of the first release.
pub const FIRST_STATUS_CPUS: u32 = 128;
/// Bytes of a [`ChannelRing`](crate::ChannelRing) before its data.
pub const CHANNEL_DATA: u32 = 4096;

/// Why a header is not one that this release can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// No header.
    Magic,
    /// One of another family.
    Family(u32),
    /// A part that cannot be: elements shorter than the first release's, or beyond the part's end.
    Damaged(&'static str),
}

/// Elements that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Array {
    /// Physical address of the first.
    pub start: u64,
    /// Bytes from one to the next.
    pub stride: u32,
    /// How many there are.
    pub count: u32,
}

impl Array {
    /// Nothing.
    const EMPTY: Self = Self {
        start: 0,
        stride: 0,
        count: 0,
    };

    /// Physical address of an element, `None` beyond the last.
    #[must_use]
    pub fn address(&self, index: u32) -> Option<u64> {
        (index < self.count).then(|| self.start + u64::from(index) * u64::from(self.stride))
    }

    /// How many bytes of an element are to be copied into a `T`; the rest of it is 0.
    #[must_use]
    pub fn known<T>(&self) -> usize {
        size_of::<T>().min(self.stride as usize)
    }
}

/// Where L0's arrays are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// [`HostStatus`](crate::HostStatus), by slot.
    pub hosts: Array,
    /// [`CpuStatus`](crate::CpuStatus). [`Status::cpu_count`](crate::Status::cpu_count) of them are in use.
    pub cpus: Array,
    /// [`TraceRecord`](crate::TraceRecord): record number `n` is at `n % count`.
    pub trace: Array,
    /// [`KeptRing`]: see [`Layout::kept`].
    kept_rings: Array,
    /// [`KeptRecord`] of the first of them.
    kept_records: Array,
    /// Rings, two for each channel: see [`Layout::ring`].
    pub rings: Array,
    /// Bytes of text in the log ring: byte number `n` is at `n % log_bytes`.
    pub log_bytes: u32,
    /// [`PoolExtent`](crate::PoolExtent). An older L0 has none.
    pub extents: Option<Array>,
}

impl Layout {
    /// Checks the header and works out where things are.
    ///
    /// # Errors
    /// [`HeaderError`].
    pub fn of(header: &Header) -> Result<Self, HeaderError> {
        if header.magic != MAGIC {
            return Err(HeaderError::Magic);
        }
        if header.family != FAMILY {
            return Err(HeaderError::Family(header.family));
        }
        if header.size < HEADER_MIN {
            return Err(HeaderError::Damaged("header"));
        }
        let status = Part {
            name: "status",
            start: header.status,
            size: header.status_size,
        };
        let trace = Part {
            name: "trace ring",
            start: header.trace,
            size: header.trace_size,
        };
        let channels = Part {
            name: "channels",
            start: header.channels,
            size: header.channels_size,
        };
        let record_size = or(header.trace_record_size, FIRST_TRACE_RECORD_SIZE);
        let records = offset_of!(TraceRing, records) as u32;
        let record_count = (header.trace_size.saturating_sub(records.into()) / u64::from(record_size)) as u32;
        let ring_size = or(header.channel_ring_size, FIRST_CHANNEL_RING_SIZE);
        let ring_count = or(header.channel_count, FIRST_CHANNEL_COUNT).saturating_mul(SLOTS as u32);
        if !ring_size.saturating_sub(CHANNEL_DATA).is_power_of_two() {
            return Err(HeaderError::Damaged(channels.name));
        }
        let (kept_rings, kept_records) = kept(header)?;
        let log_bytes = header.log_size.saturating_sub(offset_of!(LogRing, text) as u64);
        Ok(Self {
            hosts: status.array(
                or(header.status_hosts, FIRST_STATUS_HOSTS),
                or(header.host_status_size, FIRST_HOST_STATUS_SIZE),
                FIRST_HOST_STATUS_SIZE,
                8,
                SLOTS as u32,
            )?,
            cpus: status.array(
                or(header.status_cpus, FIRST_STATUS_CPUS),
                or(header.cpu_status_size, FIRST_CPU_STATUS_SIZE),
                FIRST_CPU_STATUS_SIZE,
                64,
                or(header.cpu_capacity, FIRST_CPU_CAPACITY),
            )?,
            trace: trace.array(records, record_size, FIRST_TRACE_RECORD_SIZE, 8, record_count)?,
            kept_rings,
            kept_records,
            rings: channels.array(0, ring_size, CHANNEL_DATA, 4096, ring_count)?,
            log_bytes: u32::try_from(log_bytes)
                .ok()
                .filter(|bytes| *bytes != 0)
                .ok_or(HeaderError::Damaged("log ring"))?,
            extents: extents(header)?,
        })
    }

    /// Physical address of the ring of a channel that the host in a slot writes.
    #[must_use]
    pub fn ring(&self, channel: u32, from: Slot) -> Option<u64> {
        self.rings
            .address(channel.checked_mul(SLOTS as u32)?.checked_add(from.raw())?)
    }

    /// Physical address of a ring of kept records and what is in it: the `n`-th of the kind is at `n % count`. `None` for
    /// a kind that this L0 does not keep.
    #[must_use]
    pub fn kept(&self, kind: u32) -> Option<(u64, Array)> {
        let ring = self.kept_rings.address(kind)?;
        let start = ring + offset_of!(KeptRing, records) as u64;
        Some((
            ring,
            Array {
                start,
                ..self.kept_records
            },
        ))
    }

    /// Number of kinds whose records are kept, kind 0 included.
    #[must_use]
    pub const fn kept_kinds(&self) -> u32 {
        self.kept_rings.count
    }

    /// Number of channels.
    #[must_use]
    pub const fn channel_count(&self) -> u32 {
        self.rings.count / SLOTS as u32
    }
}

/// Rings of kept records, and the records of the first ring. An L0 that keeps none has neither.
fn kept(header: &Header) -> Result<(Array, Array), HeaderError> {
    if header.kept == 0 {
        return Ok((Array::EMPTY, Array::EMPTY));
    }
    let all = Part {
        name: "kept records",
        start: header.kept,
        size: u64::from(header.kept_ring_size) * u64::from(header.kept_kinds),
    };
    let records = offset_of!(KeptRing, records) as u32;
    let least = size_of::<KeptRecord>() as u32;
    let rings = all.array(0, header.kept_ring_size, records + least, 8, header.kept_kinds)?;
    let one = Part {
        size: header.kept_ring_size.into(),
        ..all
    };
    let count = (header.kept_ring_size - records).checked_div(header.kept_record_size);
    let records = one.array(records, header.kept_record_size, least, 8, count.unwrap_or(0))?;
    Ok((rings, records))
}

/// The pool's table, if there is one. It has no size of its own in the header.
fn extents(header: &Header) -> Result<Option<Array>, HeaderError> {
    if header.pool_table == 0 {
        return Ok(None);
    }
    let shared_end = header.shared.saturating_add(header.shared_size);
    let table = Part {
        name: "pool's table",
        start: header.pool_table,
        size: shared_end.saturating_sub(header.pool_table),
    };
    let (stride, count) = (header.pool_extent_size, header.pool_extent_count);
    if header.pool_table < header.shared {
        return Err(HeaderError::Damaged(table.name));
    }
    table
        .array(0, stride, size_of::<PoolExtent>() as u32, 64, count)
        .map(Some)
}

/// A stretch of the shared region.
struct Part {
    name: &'static str,
    start: u64,
    size: u64,
}

impl Part {
    /// Elements of at least as many bytes as the first release's, aligned as they were.
    fn array(&self, offset: u32, stride: u32, least: u32, align: u32, count: u32) -> Result<Array, HeaderError> {
        let end = u64::from(stride)
            .checked_mul(count.into())
            .and_then(|bytes| bytes.checked_add(offset.into()));
        let fits = end.is_some_and(|end| end <= self.size) && self.start.checked_add(self.size).is_some();
        if count == 0 || stride < least || !stride.is_multiple_of(align) || !fits {
            return Err(HeaderError::Damaged(self.name));
        }
        Ok(Array {
            start: self.start + u64::from(offset),
            stride,
            count,
        })
    }
}

/// What the header says, or what the first release had.
const fn or(said: u32, first: u32) -> u32 {
    if said == 0 { first } else { said }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::header::MAX_CPUS;
    use crate::trace::{KEPT_KINDS, KEPT_RECORDS, LOG_BYTES, TRACE_RECORDS};
    use crate::{CHANNEL_COUNT, ChannelRing, CpuStatus, HostStatus, Status, TraceRecord};

    fn header() -> Header {
        Header {
            status: 0x1000,
            trace: 0x4_0000,
            log: 0x8_0000,
            channels: 0x10_0000,
            kept: 0x20_0000,
            ..Header::of_this_release()
        }
    }

    #[test]
    fn this_release_is_laid_out_as_its_structures() {
        let layout = Layout::of(&header()).unwrap();
        let cpus = 0x1000 + offset_of!(Status, cpus) as u64;
        assert_eq!(layout.cpus.address(3), Some(cpus + 3 * size_of::<CpuStatus>() as u64));
        assert_eq!(layout.cpus.address(MAX_CPUS as u32), None);
        assert_eq!(layout.cpus.known::<CpuStatus>(), size_of::<CpuStatus>());
        let hosts = 0x1000 + offset_of!(Status, hosts) as u64;
        assert_eq!(layout.hosts.address(1), Some(hosts + size_of::<HostStatus>() as u64));
        assert_eq!(layout.trace.count as usize, TRACE_RECORDS);
        let records = 0x4_0000 + offset_of!(TraceRing, records) as u64;
        assert_eq!(
            layout.trace.address(2),
            Some(records + 2 * size_of::<TraceRecord>() as u64)
        );
        let ring = 0x20_0000 + 3 * size_of::<KeptRing>() as u64;
        let (at, records) = layout.kept(3).unwrap();
        assert_eq!((at, records.count as usize), (ring, KEPT_RECORDS));
        let record = ring + offset_of!(KeptRing, records) as u64 + 2 * size_of::<KeptRecord>() as u64;
        assert_eq!(records.address(2), Some(record));
        assert_eq!(layout.kept_kinds() as usize, KEPT_KINDS);
        assert_eq!(layout.kept(KEPT_KINDS as u32), None);
        assert_eq!(layout.log_bytes as usize, LOG_BYTES);
        assert_eq!(layout.channel_count() as usize, CHANNEL_COUNT);
        let ring = 0x10_0000 + 5 * size_of::<ChannelRing>() as u64;
        assert_eq!(layout.ring(2, Slot::Odd), Some(ring));
        assert_eq!(layout.ring(4, Slot::Even), None);
    }

    #[test]
    fn an_l0_that_says_nothing_is_of_the_first_release() {
        let first = Header {
            size: HEADER_MIN,
            cpu_status_size: 0,
            cpu_capacity: 0,
            host_status_size: 0,
            trace_record_size: 0,
            channel_count: 0,
            channel_ring_size: 0,
            status_hosts: 0,
            status_cpus: 0,
            kept: 0,
            kept_ring_size: 0,
            kept_record_size: 0,
            kept_kinds: 0,
            ..header()
        };
        let now = Layout::of(&header()).unwrap();
        let expected = Layout {
            cpus: Array {
                count: FIRST_CPU_CAPACITY,
                ..now.cpus
            },
            kept_rings: Array::EMPTY,
            kept_records: Array::EMPTY,
            ..now
        };
        assert_eq!(Layout::of(&first), Ok(expected));
        assert_eq!(expected.kept(0), None);
    }

    #[test]
    fn a_later_release_may_have_more_of_everything() {
        let later = Header {
            size: 4096,
            features: !0,
            cpu_status_size: 1024,
            cpu_capacity: 512,
            host_status_size: 64,
            status_hosts: 128,
            status_cpus: 256,
            status_size: 256 + 512 * 1024,
            trace_record_size: 64,
            channel_count: 16,
            channel_ring_size: 4096 + (1 << 20),
            channels_size: 16 * 2 * (4096 + (1 << 20)),
            kept_ring_size: 64 + 100 * 48,
            kept_record_size: 48,
            kept_kinds: 40,
            ..header()
        };
        let layout = Layout::of(&later).unwrap();
        assert_eq!(layout.cpus.address(511), Some(0x1000 + 256 + 511 * 1024));
        assert_eq!(layout.cpus.known::<CpuStatus>(), size_of::<CpuStatus>());
        assert_eq!(layout.hosts.address(1), Some(0x1000 + 128 + 64));
        assert_eq!((layout.trace.count, layout.channel_count()), (1022, 16));
        let (_, records) = layout.kept(39).unwrap();
        assert_eq!((records.count, records.known::<KeptRecord>()), (100, 40));
    }

    #[test]
    fn the_pools_table_is_where_the_header_says_or_nowhere() {
        assert_eq!(Layout::of(&header()).unwrap().extents, None);
        let with = |change: &dyn Fn(&mut Header)| {
            let mut header = Header {
                shared: 0x20_0000,
                shared_size: 0x20_0000,
                pool_table: 0x3c_0000,
                ..header()
            };
            change(&mut header);
            Layout::of(&header).map(|layout| layout.extents)
        };
        let table = with(&|_| {}).unwrap().unwrap();
        assert_eq!((table.address(1), table.count), (Some(0x3c_0080), 1024));
        let longer = with(&|header| header.pool_extent_size = 192).unwrap().unwrap();
        assert_eq!(longer.known::<PoolExtent>(), 128);
        for change in [
            &|header: &mut Header| header.pool_extent_size = 64,
            &|header: &mut Header| header.pool_extent_count = 0x1000,
            &|header: &mut Header| header.pool_table = 0x1f_0000,
            &|header: &mut Header| header.pool_table = u64::MAX,
        ] as [&dyn Fn(&mut Header); 4]
        {
            assert_eq!(with(change), Err(HeaderError::Damaged("pool's table")));
        }
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let refused = |change: &dyn Fn(&mut Header)| {
            let mut header = header();
            change(&mut header);
            Layout::of(&header).unwrap_err()
        };
        assert_eq!(refused(&|header| header.magic = 0), HeaderError::Magic);
        assert_eq!(refused(&|header| header.family = 2), HeaderError::Family(2));
        let damaged = |part, change: &dyn Fn(&mut Header)| assert_eq!(refused(change), HeaderError::Damaged(part));
        damaged("header", &|header| header.size = HEADER_MIN - 1);
        damaged("status", &|header| header.cpu_status_size = 640);
        damaged("status", &|header| header.cpu_status_size = 708);
        damaged("status", &|header| header.cpu_capacity = MAX_CPUS as u32 + 1);
        damaged("status", &|header| header.cpu_capacity = u32::MAX);
        damaged("status", &|header| header.status_hosts = u32::MAX);
        damaged("status", &|header| header.status = u64::MAX);
        damaged("trace ring", &|header| header.trace_size = 128);
        damaged("trace ring", &|header| header.trace_record_size = 24);
        damaged("kept records", &|header| header.kept_ring_size = 64 + 39);
        damaged("kept records", &|header| header.kept_ring_size = 64 + 41);
        damaged("kept records", &|header| header.kept_record_size = 32);
        damaged("kept records", &|header| header.kept_record_size = 0);
        damaged("kept records", &|header| header.kept_kinds = 0);
        damaged("kept records", &|header| header.kept = u64::MAX);
        damaged("log ring", &|header| header.log_size = 64);
        damaged("channels", &|header| header.channel_count = 5);
        damaged("channels", &|header| header.channel_ring_size = 4096);
        damaged("channels", &|header| header.channel_ring_size = 4096 + 48 * 1024);
    }
}
