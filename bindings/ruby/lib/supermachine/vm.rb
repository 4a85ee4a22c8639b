# frozen_string_literal: true

require_relative "connections"
require_relative "files"
require_relative "programs"

module Supermachine
  # A running microVM.
  class VM < Handle
    include Programs
    include Files
    include Connections

    KIND = "vm"

    # Random identifier, 12 hexadecimal digits.
    attr_reader :id
    # Name, which is also the guest's host name.
    attr_reader :name
    # The random identifier that the guest was given when it was restored; empty for one that was booted.
    attr_reader :restore_id

    # Pulls an OCI image if need be and boots it, without a snapshot; the image's command is not started. Options: memory_mib, vcpus, scratch_mib, pull,
    # platform, insecure, and those of Image#start. With a block, yields the VM and closes it at its end.
    def self.boot(ref, store: nil, progress: nil, **options, &block)
      opened(new(Native.call("vm_boot", store&.handle || 0, progress, ref: ref, **options)), &block)
    end

    def initialize(started)
      super(started[:vm])
      @id, @name, @restore_id = started.values_at(:id, :name, :restore_id)
    end

    # Returns the last that the guest's kernel and init wrote to the console.
    def console(max_bytes: nil) = Native.quick("vm_console", handle, max_bytes: max_bytes)[:text]

    # Reads the console as a stream, from what is kept on, the last 64 KiB, until the VM ends: yields the IO, or returns a GuestFile. A reader that is slow
    # misses some.
    def follow_console
      file = GuestFile.new(Native.call("vm_follow_console", handle))
      return file unless block_given?

      GuestFile.opened(file) { |f| yield f.io }
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

    # Measures what the VM uses and has used, and asks its guest; the keys are those of sm_vm_stats.
    def stats = Native.call("vm_stats", handle)

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
