# frozen_string_literal: true

require_relative "handle"

module Supermachine
  # What VMs start from: a workload that was brought to readiness and frozen.
  class Image < Handle
    KIND = "image"

    # The snapshot's identifier.
    attr_reader :id

    class << self
      # Pulls an OCI image and boots it once, brings its workload to readiness and freezes it. If the store has that already, nothing is booted. With a
      # block, yields the image and closes it at its end.
      #
      # Options: name, entrypoint, cmd, env, user, workdir, memory_mib, vcpus, scratch_mib, guest_port, pull, platform, insecure, store; boot_only: start no
      # workload, the VMs only run programs; ready: "port[:N]", "settle[:DURATION]", "none", or a program's arguments that exits with 0; warmup: programs
      # that run before the freeze; timeout: seconds; progress: called with a hash for each step.
      def from_oci(ref, progress: nil, **options, &block) = opened(bake(ref, progress, **options), &block)

      # Opens a snapshot of the store by its ID, the beginning of it, or its name. verify: "once" (default), "always" or "never".
      def from_snapshot(name, verify: nil, store: nil, &block)
        opened(new(Native.call("image_from_snapshot", store&.handle || 0, name: name, verify: verify)), &block)
      end

      # :nodoc:
      def bake(ref, progress, store: nil, ready: nil, **options)
        readiness = ready.is_a?(Array) ? { ready_command: ready } : { ready: ready }
        new(Native.call("image_from_oci", store&.handle || 0, progress, ref: ref, **readiness, **options))
      end
    end

    def initialize(made)
      super(made[:image])
      @id = made[:id]
    end

    # Starts a VM, with entropy, clock and host name of its own. With a block, yields the VM and closes it at its end.
    #
    # Options: name; timeout: seconds until the guest must answer. volumes: disks in files of the host, "FILE:/PATH[:ro][:size=8G]"; mounts: directories
    # of the host, "DIR:/PATH[:ro][:symlinks=opaque|deny|follow]". network: let the guest reach other computers; egress: rules such as
    # "allow *.example.com:443" or "deny 192.0.2.0/24", of which the first that fits decides; egress_default: "allow" or "deny", for what none is about;
    # network_rate: bytes per second, each way. disk_rate, disk_ops: bytes and requests per second of each disk. cpu_percent: of the host's CPUs, 100 for one. cgroup: directory of a threaded cgroup.
    # lifetime: seconds until the VM is ended by
    # force; idle_timeout: seconds without use until it is paused, to be woken up by the next.
    def start(**options, &block) = VM.opened(VM.new(Native.call("vm_start", handle, **options)), &block)

    # Takes a VM from the image's own pool, which keeps one ready. Closing it gives it back.
    def acquire(&block) = VM.opened(VM.new(Native.call("image_acquire", handle)), &block)

    # Says what the image's own pool has and has done; the keys are those of sm_pool_stats.
    def pool_stats = Native.quick("image_pool_stats", handle)

    # Describes the image; the keys are those of sm_image_info.
    def info = Native.quick("image_info", handle)

    # Makes a pool of VMs: min kept ready, max at most, idle_timeout seconds until a surplus is closed, acquire_timeout seconds to wait for one.
    # given: volumes, mounts, network, egress, egress_default and network_rate of each VM, as for start. Volumes can only be read, and VMs with a network are
    # replaced after each use.
    def pool(min: nil, max: nil, idle_timeout: nil, acquire_timeout: nil, replace: false, **given, &block)
      Pool.opened(Pool.new(Native.quick(
        "pool_new", handle, min: min, max: max, idle_timeout: idle_timeout, acquire_timeout: acquire_timeout, replace: replace, **given
      )), &block)
    end
  end

  # Keeps VMs of one image ready. The image must stay open as long.
  class Pool < Handle
    KIND = "pool"

    def initialize(made)
      super(made[:pool])
    end

    # Takes a VM, in microseconds if one is ready. Closing it gives it back, and the next user gets a clean one. With a block, yields the VM and
    # closes it at its end.
    def acquire(&block) = VM.opened(VM.new(Native.call("pool_acquire", handle)), &block)

    # Says what the pool has and has done; the keys are those of sm_pool_stats.
    def stats = Native.quick("pool_stats", handle)
  end
end
