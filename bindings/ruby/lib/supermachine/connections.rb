# frozen_string_literal: true

require_relative "handle"

module Supermachine
  # A listener, on the host or in the guest, whose connections go to a port or a server on the other side. Closing it leaves those that are open.
  class Forward < Handle
    KIND = "forward"

    # Where it listens on the host: HOST:PORT or a path; nil for one that listens in the guest.
    attr_reader :address
    # On which port of the guest's loopback address it listens; nil for one that listens on the host.
    attr_reader :port

    def initialize(made)
      super(made[:forward])
      @address, @port = made.values_at(:address, :port)
    end

    # Says what it has done so far: open, total and failed connections; bytes sent and received by who connects.
    def stats = Native.quick("forward_stats", handle)
  end

  # Connections between the host and a VM. Where no port of the guest is given, it is the workload's, as the bake or the image says, or else the one on
  # which a program has listened longest.
  module Connections
    # Opens a connected UNIXSocket to a TCP port of the guest. With a block, yields it and closes it at its end.
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

    # Has the guest listen on a TCP port of its loopback address, by default one that is free, and connects what arrives to a server of the host, at
    # HOST:PORT or a Unix socket's path. Copies of the VM do not have it.
    def forward_to_host(address, port: nil, &block)
      Forward.opened(Forward.new(Native.call("vm_forward_to_host", handle, address: address, port: port)), &block)
    end

    # Returns the path of a Unix socket that leads to the workload's port, for other processes of the same user. It goes with the VM.
    def socket_path = Native.call("vm_socket_path", handle)[:path]
  end
end
