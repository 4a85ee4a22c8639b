# frozen_string_literal: true

require_relative "handle"
require_relative "process"

module Supermachine
  # A listener on the host whose connections go to a port of the guest.
  class Forward < Handle
    KIND = "forward"

    # Where it listens: HOST:PORT or a path.
    attr_reader :address

    def initialize(made)
      super(made[:forward])
      @address = made[:address]
    end
  end

  # A file of the guest, read or written as a stream of any size.
  class GuestFile < Handle
    KIND = "file"

    # The IO to read from or write to.
    attr_reader :io

    def initialize(opened)
      super(opened[:file])
      @io = Native.socket(opened[:fd])
    end

    # Ends the stream and waits until all of it was read, or is in the file. A written file appears under its name only now.
    def commit
      @io.close
      Native.call("file_wait", handle)
      nil
    end

    # Gives the transfer up. A file that was not committed stays as it was.
    def close
      super
    ensure
      @io.close
    end
  end

  # A running microVM.
  class VM < Handle
    KIND = "vm"

    # Random identifier, 12 hexadecimal digits.
    attr_reader :id
    # Name, which is also the guest's host name.
    attr_reader :name
    # The random identifier that the guest was given when it was restored; empty for one that was booted.
    attr_reader :restore_id

    # Pulls an OCI image if need be and boots it, without a snapshot; the image's command is not started. Options: name, memory_mib, vcpus,
    # scratch_mib, timeout, pull, platform, insecure. With a block, yields the VM and closes it at its end.
    def self.boot(ref, store: nil, progress: nil, **options, &block)
      opened(new(Native.call("vm_boot", store&.handle || 0, progress, ref: ref, **options)), &block)
    end

    def initialize(started)
      super(started[:vm])
      @id, @name, @restore_id = started.values_at(:id, :name, :restore_id)
    end

    # Runs a program to its end and collects what it writes, up to 64 MiB of each stream. stdin: what it reads. env: over the image's. timeout: seconds,
    # after which it is killed and the result says timed_out. check: raise an ExitError unless it exits with 0.
    def run(args, stdin: nil, env: nil, workdir: nil, user: nil, timeout: nil, check: false)
      argv = Native.argv(args)
      result = Result.new(Native.call("vm_run", handle, args: argv, stdin: stdin, env: env, workdir: workdir, user: user, timeout: timeout))
      raise ExitError.new(argv, result) if check && !result.success?

      result
    end

    # Starts a program and returns once it runs. stdin, stdout, stderr: which streams are wanted. tty: run it on a terminal of rows and cols. With a
    # block, yields the program and closes it at its end.
    def exec(args, stdin: false, stdout: true, stderr: false, tty: false, rows: nil, cols: nil, env: nil, workdir: nil, user: nil, timeout: nil, &block)
      Process.opened(Process.new(Native.call(
        "vm_exec", handle, args: Native.argv(args), stdin: stdin, stdout: stdout, stderr: stderr, tty: tty, rows: rows, cols: cols, env: env,
        workdir: workdir, user: user, timeout: timeout
      )), &block)
    end

    # Starts a program as the workload: it runs by itself, and gets the stop signal when the VM is stopped.
    def start_workload(args, env: nil, workdir: nil, user: nil)
      Native.call("vm_start_workload", handle, args: Native.argv(args), env: env, workdir: workdir, user: user)
      nil
    end

    # Attaches to the workload: what the guest has kept of its output comes first, then what it writes. Closing ends the following alone.
    def logs(&block) = Process.opened(Process.new(Native.call("vm_follow", handle)), &block)

    # Returns the last that the guest's kernel and init wrote to the console.
    def console(max_bytes: nil) = Native.quick("vm_console", handle, max_bytes: max_bytes)[:text]

    # Opens a connected UNIXSocket to a TCP port of the guest; default: the workload's. With a block, yields it and closes it at its end.
    def connect(port = nil)
      io = Native.socket(Native.call("vm_connect", handle, port: port)[:fd])
      return io unless block_given?

      begin
        yield io
      ensure
        io.close
      end
    end

    # Listens on the host, at HOST:PORT or a Unix socket's path, and connects what arrives to the guest's port. Default: 127.0.0.1 and a free port.
    def forward(port = nil, address: nil, &block)
      Forward.opened(Forward.new(Native.call("vm_forward", handle, port: port, address: address)), &block)
    end

    # Reads a file of the guest, of up to 64 MiB, as a binary string.
    def read_file(path, max_bytes: nil) = Native.call("vm_read_file", handle, path: path, max_bytes: max_bytes)[:data] || "".b

    # Creates or replaces a file of the guest, all or nothing. mode: permission bits, default 0o644.
    def write_file(path, data, mode: nil)
      Native.call("vm_write_file", handle, path: path, data: data, mode: mode)
      nil
    end

    # Reads a file of the guest, of any size, as a stream: yields the IO, or returns a GuestFile.
    def open_file(path)
      file = GuestFile.new(Native.call("vm_open_file", handle, path: path))
      return file unless block_given?

      GuestFile.opened(file) { |f| yield f.io }
    end

    # Creates or replaces a file of the guest with what is written to a stream: yields the IO, and the file appears at the end of the block, unless that
    # raises. Without a block, returns a GuestFile to be committed.
    def create_file(path, mode: nil)
      file = GuestFile.new(Native.call("vm_create_file", handle, path: path, mode: mode))
      return file unless block_given?

      GuestFile.opened(file) do |f|
        r = yield f.io
        f.commit
        r
      end
    end

    # Copies a file of the host into the guest, with its permissions.
    def upload(source, path)
      File.open(source, "rb") { |from| create_file(path, mode: from.stat.mode & 0o777) { |to| IO.copy_stream(from, to) } }
      nil
    end

    # Copies a file of the guest to the host.
    def download(path, target)
      file = open_file(path)
      GuestFile.opened(file) do |from|
        File.open(target, "wb") { |to| IO.copy_stream(from.io, to) }
        from.commit
      end
    end

    # Stops the guest's processors and devices.
    def pause
      Native.call("vm_pause", handle)
      nil
    end

    # Continues a paused VM.
    def resume
      Native.call("vm_resume", handle)
      nil
    end

    # Saves the running VM as an Image that others can be started from. base: store only what differs from it. lean: spend some tenths of a second on
    # making it small.
    def snapshot(name = nil, base: nil, lean: false, store: nil, &block)
      Image.opened(Image.new(Native.call("vm_snapshot", handle, name: name, base: base, lean: lean, store: store)), &block)
    end

    # Makes n VMs that go on from this instant, while this one goes on too.
    def fork(n = 1, names: nil, timeout: nil)
      r = Native.call("vm_fork", handle, n: n, names: names, timeout: timeout)
      r[:vms].each_with_index.map { |vm, i| VM.new({ vm: vm, id: r[:ids][i], name: r[:names][i], restore_id: r[:restore_ids][i] }) }
    end

    # Describes the VM; the keys are those of sm_vm_info.
    def info = Native.quick("vm_info", handle)

    # Says what memory the VM takes; the keys are those of sm_vm_memory.
    def memory = Native.call("vm_memory", handle)

    # Asks the guest to give up so many bytes of its memory; 0 returns all of it.
    def balloon=(bytes)
      Native.quick("vm_set_balloon", handle, bytes: bytes)
    end

    # Waits until the VM has ended and tells why, such as "powered off".
    def wait = Native.call("vm_wait", handle)[:reason]

    # Asks the guest to shut down, and stops it by force if it does not within grace seconds (default 10). Tells how it ended.
    def stop(grace: nil) = Native.call("vm_stop", handle, grace: grace)[:reason]

    # Ends the VM at once.
    def kill
      Native.quick("vm_kill", handle)
      nil
    end

    # Like close, but a VM that was acquired from a pool is thrown away.
    def discard
      Native.call("vm_discard", handle) if mark_closed
      nil
    end
  end
end
