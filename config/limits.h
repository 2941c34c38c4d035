/* Every bound that has a name. What happens when one is reached stands beside it; a counter tells
 * how close the appliance came. Figures a person may tune; the static assertions at the places that
 * use them say which must move together. */
#ifndef CONFIG_LIMITS_H
#define CONFIG_LIMITS_H

/* Device tree: nodes that match a driver, and words of a `reg` or `compatible` list looked at.
 * Further ones are named in the log and left alone. */
#define DEVICE_NODES_MAX  128
#define DEVICE_REGS_MAX   4
#define FDT_DEPTH_MAX     16
#define MEMORY_RANGES_MAX 32
#define FDT_BYTES_MAX     (1024 * 1024)

/* Runs of free memory that the heap is made of: image, device tree and firmware lie between them.
 * The longest are taken; further ones, and those shorter than this, stay unused. */
#define HEAP_RANGES_MAX      4
#define HEAP_RANGE_BYTES_MIN (64 * 1024)

/* Kernel command line and configuration files; a longer one is refused. */
#define COMMAND_LINE_MAX 4096
#define CONFIG_WORDS_MAX 64

/* Interrupt sources with a handler. A further registration is refused. */
#define IRQ_HANDLERS_MAX 64
/* Claims taken in one turn of the scheduler: a storm cannot keep the tasks from running. */
#define IRQ_CLAIMS_PER_TURN 64

/* Tasks: their number is bounded by memory; each stack is this large unless its creator asks. */
#define TASK_STACK_BYTES (32 * 1024)
#define TASKS_MAX        64
/* Rings polled before and after every sleep. */
#define POLL_SOURCES_MAX 32
/* A task that keeps the processor longer than this is named in the log (key `stall`, 0 for never).
 */
#define TASK_STALL_MS 200
#define STALL_MS_MAX  60000
/* The key `spin`: how long the rings are looked at before each sleep. */
#define SPIN_US_MAX 10000
/* With `spin=auto` so long, which covers what a client on the same machine takes to ask again, and
 * a disk in the host's memory to answer (20, 60 and 120 were slower for the latter). */
#define SPIN_AUTO_US 30
/* But only after so many waits in a row none of which took longer than so long (a sleep's wake-up
 * included, which a spin saves), and which brought no more than so many ring entries each: a single
 * request is three, a frame in, the disk's answer, and the reply's acknowledgement. */
#define SPIN_AUTO_WAITS       8
#define SPIN_AUTO_WAIT_US     200
#define SPIN_AUTO_ENTRIES_MAX 3
/* An appliance whose scheduler has not turned for this long is ended with a report (key `watchdog`,
 * 0 for never). */
#define WATCHDOG_S     10
#define WATCHDOG_S_MAX 3600
/* How often the watchdog is fed; it bites after two halves of its time. */
#define WATCHDOG_FEED_MS 500
/* How often the processor forgets the translations of addresses that it remembers. A real one need
 * not, but QEMU's emulated one has a table of them that grows only when it is flushed, to twice its
 * size if it was nearly full: then one that holds all that many clients need is there in a second.
 */
#define TRANSLATIONS_MS 50
/* With `panic=restart`, a panic before this powers off all the same: it would come again. */
#define PANIC_RESTART_MIN_MS 10000
/* Even with nothing to wait for the scheduler looks around this often: the net under lost events.
 */
#define IDLE_NET_MS 1000

/* Log: bytes kept for the console and for a report; the oldest line goes first. */
#define LOG_RING_BYTES (16 * 1024)
#define LOG_LINE_MAX   256
/* A console that takes nothing, for nobody reads it, is offered what waits this often; and at the
 * end given up after so long. */
#define LOG_RETRY_MS 10
#define LOG_FLUSH_MS 1000
/* Lines per cause and second that rate-limited causes may print. */
#define LOG_RATE_PER_S 5

/* Block: segments of one request (a request is split for a device that takes fewer). */
#define BLOCK_SEGMENTS_MAX 64
#define BLOCK_DEVICES_MAX  16
/* Largest logical block: the largest minimum that NBD can announce. A disk with larger ones is left
 * out. */
#define BLOCK_LOGICAL_BYTES_MAX (64u * 1024)
/* Ranges of a disk that are known to be zero or a hole, fewer where memory is short. What has no
 * room is forgotten, smallest first: it counts as data then. */
#define BLOCK_EXTENTS_MAX 1024
#define BLOCK_EXTENTS_MIN 64
/* Ring entries asked for; a device may offer fewer. */
#define BLOCK_RING_ENTRIES 256
/* A request that the device has not answered by then is reported with the state of the queue, and
 * the device is reset. The default of the key disk.timeout, and its bounds in seconds. */
#define BLOCK_REQUEST_TIMEOUT_MS    60000
#define BLOCK_REQUEST_TIMEOUT_S_MAX 3600
/* What is overdue may be tried this often in all; then it fails with EIO. */
#define BLOCK_ATTEMPTS_MAX 3
/* Resets within this time: a device that needs more is taken out of service. */
#define BLOCK_RESETS_MAX      6
#define BLOCK_RESET_WINDOW_MS 600000
/* A device that has not finished its reset by then is taken out of service, and the memory of its
 * requests is never used again. */
#define BLOCK_RESET_TIMEOUT_MS 5000
/* Longest device request that requests are merged to: what it delays by is what the device needs
 * for that many bytes. */
#define BLOCK_MERGE_BYTES_MAX (128 * 1024)
/* Completions handled before other tasks get their turn. */
#define BLOCK_REAP_BUDGET 128

/* Partition tables: partitions of one disk (further ones are named in the log and left out), bytes
 * of a GPT's array of entries (a larger one is refused; the usual one has 16 KiB), and reads spent
 * on one disk (a table that needs more is refused). A logical partition takes one read. */
#define PARTITIONS_MAX        128
#define GPT_ENTRIES_BYTES_MAX (256 * 1024)
#define PARTITION_READS_MAX   (PARTITIONS_MAX + 16)

/* Disks that have not told their serial and partition table by then are exported whole. */
#define DISK_SCAN_TIMEOUT_MS 3000

/* Network: ring entries, and bytes of one receive buffer, virtio header included. */
#define NET_RX_RING_ENTRIES 1024
#define NET_TX_RING_ENTRIES 1024
#define NET_RX_BUDGET       NET_RX_RING_ENTRIES
/* Where a receive buffer has two pages or more, a page begins behind the headers of a frame, so
 * many bytes at most: of Ethernet, IPv4, TCP and an NBD request, after which the payload of a write
 * begins that has come in a frame of its own. What bypasses the host's page cache has to be
 * aligned, or QEMU copies it in a thread of its pool. */
#define NET_RX_PAGE_BEHIND_MAX (14 + 20 + 20 + 32)
/* Received bytes that all connections together may hold is the receive pool; below this share of
 * free buffers (in 1/8) connections hand on what they have instead of gathering whole requests. */
#define NET_RX_PRESSURE_EIGHTHS 2
/* Below this share, frames with TCP payload are dropped as if the wire had lost them, and the peer
 * sends them again: what is left is for acknowledgements, which free the memory that others wait
 * for. */
#define NET_RX_RESERVE_EIGHTHS 1

/* Payload of a packet that moves into the buffer of the one before it, if that is still unread. */
#define NET_JOIN_BYTES_MAX 128

/* Longest TCP segment handed to the device whole: a multiple of what Ethernet's segments carry, and
 * below 64 KiB with all headers. */
#define NET_SEGMENT_BYTES_MAX (44u * 1460)
/* Frames sent and not yet reclaimed are looked for this often when nothing else happens. */
#define NET_RECLAIM_MS 20
/* Frames that a full send ring refused and nobody sends again, resets, ARP's packets, bare
 * acknowledgements and probes of closed windows, wait for room, so many of them; what comes on top
 * is lost, as a wire loses frames. */
#define NET_KEPT_FRAMES 128
/* Fewer consumed bytes are not told to TCP one by one: it announces a larger window when that has
 * grown by much more. */
#define NET_CONSUMED_TOLD_BYTES 256
/* Acknowledgements that nobody waits for may stay in the receive ring, so many. */
#define NET_ACKS_WAITING_MAX 8
/* So long after a frame of a connection that lwIP has made others may go the same way past it: what
 * lwIP does for its neighbours by and by (it asks whether they are still there) happens as often.
 */
#define NET_WAY_MS 1000
/* First buffers of segments, of a hundred bytes, that are kept for the next ones, for each
 * connection: there are more at a time only where it sends much, and they cost little then. */
#define NET_HEADS_KEPT 4
/* A stream that was closed has this long to get its last bytes to the peer. */
#define NET_CLOSE_TIMEOUT_MS 10000
/* A peer that has not acknowledged what was sent to it so long ago is given up, however it answers
 * otherwise (RFC 9293, 3.9.1.1, "user timeout"; key `user-timeout`). Long enough for a client that
 * was stopped for a while. Some networks never tell that a client has left: QEMU's user network
 * takes a few hundred bytes at each repetition from then on. */
#define NET_USER_TIMEOUT_S     300
#define NET_USER_TIMEOUT_S_MAX 604800

/* NBD. Clients beyond the limit are refused by closing; the limit frees itself. */
#define NBD_CONNECTIONS_MAX 64
/* Requests of one connection between header read and reply acknowledged; beyond it the
 * connection's bytes stay unread and TCP's window pushes back. Fewer where memory is short, so that
 * all clients find room; a client for which there is none is closed. */
#define NBD_REQUESTS_PER_CONNECTION     128
#define NBD_REQUESTS_PER_CONNECTION_MIN 16
/* Longest READ or WRITE, as announced in NBD_INFO_BLOCK_SIZE. */
#define NBD_REQUEST_BYTES_MAX (32u * 1024 * 1024)
/* One contiguous read buffer, and how many of them one large READ streams through. */
#define NBD_READ_CHUNK_BYTES (128u * 1024)
#define NBD_READ_CHUNKS      4
/* Pieces of requests that a disk has at a time, of all clients together, when the configuration
 * does not say: twice what its ring holds, so that the ring is full whatever merges on the way.
 * Further requests wait unread, and those who wait take turns of so many requests, or of a share of
 * the pieces when that is less. */
#define NBD_DISK_DEPTH        (2 * BLOCK_RING_ENTRIES)
#define NBD_DISK_DEPTH_MAX    8192
#define NBD_TURN_REQUESTS_MAX 32
#define NBD_TURNS_PER_DEPTH   4
/* And so many more in a round: what the disk answers at once goes to the clients while it is still
 * in the processor's cache. */
#define NBD_ROUND_PIECES 128
/* Pieces of each size that are kept for the next request of that size. */
#define NBD_PAYLOAD_KEPT 64
/* A WRITE up to this length, or what a connection may gather where memory is short, is received
 * whole before its first byte goes to the disk; a longer one goes in pieces of it. */
#define NBD_WRITE_WHOLE_BYTES    (256u * 1024)
#define NBD_HANDSHAKE_TIMEOUT_MS 10000
/* A long trim or zeroing goes to the disk in steps of so many device requests and bytes at most; of
 * zeroes that have to be written, so many bytes. Others get the disk in between. */
#define NBD_STEP_PARTS        16
#define NBD_STEP_BYTES_MAX    (UINT64_C(1) << 30)
#define NBD_STEP_ZEROES_BYTES (4u * 1024 * 1024)
/* Extents told in one reply to BLOCK_STATUS; a client asks again from where it ends. */
#define NBD_STATUS_EXTENTS_MAX 128
#define NBD_OPTION_BYTES_MAX   4096
#define NBD_EXPORT_NAME_MAX    64
#define NBD_EXPORTS_MAX        64
/* Networks in one list of addresses; with more, nothing is served. */
#define NBD_ACCESS_RULES_MAX 64
/* What a limited export may serve at once after a pause, in time at its rate. */
#define NBD_LIMIT_BURST_MS 100
/* How long a connection that ends, by itself or at shutdown, may take to take its last replies. By
 * itself it may wait for the disk as long as that takes. */
#define NBD_DRAIN_TIMEOUT_MS 5000

#endif
