package api

import "context"

type statsResult struct {
	TimeMS         int64  `msgpack:"time_ms" doc:"Since the guest first answered, in milliseconds."`
	CPUUS          int64  `msgpack:"cpu_us" doc:"What the guest has used of the host's CPUs, in microseconds."`
	PageFaults     uint64 `msgpack:"page_faults" doc:"Accesses of the guest to its memory that the host has had to resolve; 0 where the host does not count them."`
	PrivateBytes   int64  `msgpack:"private_bytes" doc:"Memory that the host holds for this VM alone; the rest is shared with others of its snapshot."`
	DiskReads      uint64 `msgpack:"disk_reads" doc:"Requests to read from the image, the writable layer and the volumes."`
	DiskWrites     uint64 `msgpack:"disk_writes" doc:"Requests to write."`
	DiskFlushes    uint64 `msgpack:"disk_flushes" doc:"Requests to bring what was written to the host's disk."`
	DiskReadBytes  uint64 `msgpack:"disk_read_bytes" doc:"Bytes read."`
	DiskWriteBytes uint64 `msgpack:"disk_write_bytes" doc:"Bytes written."`
	NetFromGuest   uint64 `msgpack:"net_from_guest_bytes" doc:"Bytes of frames that the guest sent; 0 without a network."`
	NetToGuest     uint64 `msgpack:"net_to_guest_bytes" doc:"Bytes of frames that the guest was sent."`
	NetOpen        int    `msgpack:"net_connections_open" doc:"TCP connections that are open."`
	NetTotal       uint64 `msgpack:"net_connections" doc:"TCP connections that the guest began."`
	NetRefused     uint64 `msgpack:"net_refused" doc:"TCP connections and UDP packets that the rules denied."`
	DNSQueries     uint64 `msgpack:"dns_queries" doc:"Names that the guest asked for."`
	DNSRefused     uint64 `msgpack:"dns_refused" doc:"Of them, those that the rules denied."`
	GuestCPUUS     int64  `msgpack:"guest_cpu_us" doc:"CPU time of the workload and all other programs, in microseconds. This and the following are the guest's claims, and 0 while it is paused."`
	GuestExecs     int    `msgpack:"guest_execs" doc:"Programs running."`
	GuestUptimeMS  int64  `msgpack:"guest_uptime_ms" doc:"Since the guest's kernel started, also before the snapshot, in milliseconds."`
	TotalBytes     int64  `msgpack:"total_bytes" doc:"Memory that the guest's kernel manages."`
	FreeBytes      int64  `msgpack:"free_bytes" doc:"Used for nothing."`
	AvailableBytes int64  `msgpack:"available_bytes" doc:"What programs could get without swapping."`
	CacheBytes     int64  `msgpack:"cache_bytes" doc:"Caches, mostly of files."`
	MajorFaults    int64  `msgpack:"major_faults" doc:"Page faults with I/O since boot."`
	MinorFaults    int64  `msgpack:"minor_faults" doc:"Page faults without I/O since boot."`
}

func init() {
	define("vm_stats", KindVM, 0, "Measures what a VM uses and has used, and asks its guest.",
		func(ctx context.Context, e *env, m *vm, _ *None) (statsResult, error) {
			s, err := m.Stats(ctx)
			if err != nil {
				return statsResult{}, err
			}
			g, mem, n := s.Guest, s.Guest.Memory, s.Network
			return statsResult{
				TimeMS: s.Time.Milliseconds(), CPUUS: s.CPU.Microseconds(), PageFaults: s.PageFaults, PrivateBytes: s.PrivateBytes,
				DiskReads: s.Disk.Reads, DiskWrites: s.Disk.Writes, DiskFlushes: s.Disk.Flushes, DiskReadBytes: s.Disk.ReadBytes,
				DiskWriteBytes: s.Disk.WrittenBytes, NetFromGuest: n.BytesFromGuest, NetToGuest: n.BytesToGuest, NetOpen: n.ConnsOpen, NetTotal: n.ConnsTotal,
				NetRefused: n.ConnsRefused, DNSQueries: n.DNSQueries, DNSRefused: n.DNSRefused, GuestCPUUS: g.CPU.Microseconds(), GuestExecs: g.Execs, GuestUptimeMS: g.Uptime.Milliseconds(),
				TotalBytes: mem.Total, FreeBytes: mem.Free, AvailableBytes: mem.Available, CacheBytes: mem.Caches,
				MajorFaults: mem.MajorFaults, MinorFaults: mem.MinorFaults,
			}, nil
		})
}
