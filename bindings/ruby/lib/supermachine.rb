# frozen_string_literal: true

require_relative "supermachine/errors"
require_relative "supermachine/native"
require_relative "supermachine/signals"
require_relative "supermachine/process"
require_relative "supermachine/vm"
require_relative "supermachine/image"
require_relative "supermachine/store"

# Runs any OCI image as a hardware-isolated microVM, inside this process.
#
#   Supermachine.run("busybox", ["echo", "hi"]).stdout # => "hi\n"
#
# Every function that waits lets other threads run, and other fibers where there is a fiber scheduler. One that is interrupted, by Ctrl-C, Timeout or
# a fiber that is stopped, gives its call up: what that still makes is released.
module Supermachine
  # The options of run that say what it runs in.
  OF_IMAGE = %i[store memory_mib vcpus scratch_mib pull platform insecure].freeze
  # And those that say what it has of the host and the world.
  OF_START = %i[volumes mounts network egress egress_default].freeze
  private_constant :OF_IMAGE, :OF_START

  class << self
    # Runs a program in a fresh microVM of an OCI image. The image is pulled and booted once; later calls go on from that snapshot. Takes the options
    # of VM#run, and memory_mib, vcpus, scratch_mib, pull, platform, insecure, store, and volumes, mounts, network, egress of
    # Image#start. A block is called with each step of the pull and the boot.
    def run(ref, args, **options, &progress)
      Native.argv(args) # nothing is pulled for arguments that are wrong
      baked = options.slice(*OF_IMAGE)
      image = Image.bake(ref, progress, boot_only: true, **baked)
      begin
        image.start(**options.slice(*OF_START)) { |vm| vm.run(args, **options.except(*OF_IMAGE, *OF_START)) }
      ensure
        image.close
      end
    end

    # Looks at everything that this host needs to run VMs, and changes nothing: ok, and checks with name, status, detail and fix.
    def doctor = Native.call("doctor")

    # Says which library this is: version, abi, go.
    def version = Native.quick("version")

    # Changes how this process decides whether a VM may start: wait, margin_mib, parallel, per_vm_mib.
    def set_admission(**options)
      Native.quick("set_admission", 0, **options)
      nil
    end

    # Returns what this process has done so far and has open, as text in Prometheus' format.
    def metrics = Native.quick("metrics")[:text]

    # Yields a hash for each step of what the library does, until the block breaks or raises. categories: only those of boot, restore, snapshot, bake, exec,
    # vsock, fs, net, pool and oci.
    def trace(categories: nil, &block)
      raise ArgumentError, "trace needs a block" unless block

      Native.call("trace", 0, block, categories: categories)
    end
  end
end
