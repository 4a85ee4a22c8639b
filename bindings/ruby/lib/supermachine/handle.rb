# frozen_string_literal: true

module Supermachine
  # An object of the library's. It is closed once: by close, the end of the block that it was given to, or as a last resort the garbage collector.
  class Handle
    # Its number in the library.
    attr_reader :handle

    @exiting = false

    class << self
      # Yields the object to the block and closes it afterwards; without a block, returns it.
      def opened(object)
        return object unless block_given?

        begin
          yield object
        ensure
          object.close
        end
      end

      def finalizer(name, kind, handle, open, pid)
        proc do
          # What is open when the program ends, ends with it; and in a forked child it is the parent's.
          if open[0] && !Handle.exiting? && pid == ::Process.pid
            warn "a #{name} was garbage-collected without having been closed", category: nil
            Native.quietly("#{kind}_close", handle)
          end
        end
      end

      def exiting? = @exiting

      def exiting! = @exiting = true
    end

    def initialize(handle)
      @handle = handle # kept when it is closed: the library then says so, where 0 would stand for the user's own store
      @open = [true]
      @owner = ::Process.pid
      ObjectSpace.define_finalizer(self, Handle.finalizer(self.class.name, self.class::KIND, handle, @open, @owner))
    end

    # Gives the object up. Closing twice is allowed.
    def close
      Native.call("#{self.class::KIND}_close", @handle) if mark_closed
      nil
    end

    # Whether it was closed.
    def closed? = !@open[0]

    def inspect = "#<#{self.class.name}#{' (closed)' if closed?}>"

    private

    # Whoever gets true closes the object. In a forked child nobody does.
    def mark_closed
      return false unless @open[0]

      @open[0] = false
      @owner == ::Process.pid
    end
  end

  at_exit { Handle.exiting! }
end
