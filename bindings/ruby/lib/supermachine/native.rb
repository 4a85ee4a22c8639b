# frozen_string_literal: true

require "ffi"
require "io/wait"
require "msgpack"
require "socket"

module Supermachine
  # The shared library: finding it, calling it, and waiting for it.
  module Native
    # The version of the ABI that this package was written for.
    ABI = 1
    FILE = "libsupermachine.so.1"
    RESULT = 1
    EVENT = 2

    class Bytes < FFI::Struct
      layout :data, :pointer, :len, :size_t
    end

    class Async < FFI::Struct
      layout :queue, :uint64, :tag, :uint64, :call, :pointer
    end

    class Completion < FFI::Struct
      layout :tag, :uint64, :call, :uint64, :kind, :int32, :code, :int32, :payload, Bytes
    end

    def self.glibc?
      !RUBY_PLATFORM.include?("musl") && File.foreach("/proc/self/maps").none? { |line| line.include?("/ld-musl-") }
    end

    def self.open_library
      unless RUBY_PLATFORM.match?(/\Ax86_64-linux/)
        raise LoadError, "supermachine does not run on #{RUBY_PLATFORM} yet; it needs Linux on x86-64"
      end
      # Loading a library of Go's would crash with musl, so it is not tried (golang/go#54805).
      raise LoadError, "supermachine needs glibc 2.34 or newer; it cannot be loaded with musl, such as on Alpine Linux" unless glibc?

      bundled = File.expand_path("../../native/#{FILE}", __dir__)
      path = ENV["SUPERMACHINE_LIBRARY"] || (File.exist?(bundled) ? bundled : FILE)
      begin
        library = FFI::DynamicLibrary.open(path, FFI::DynamicLibrary::RTLD_NOW | FFI::DynamicLibrary::RTLD_LOCAL)
      rescue LoadError => e
        raise LoadError, "libsupermachine cannot be loaded: #{e.message}; install the gem again, or set SUPERMACHINE_LIBRARY to the library's path"
      end
      version = library.find_function("sm_abi_version")
      raise LoadError, "#{path} is not libsupermachine" if version.nil? || version.null?

      version = FFI::Function.new(:int32, [], version).call
      raise LoadError, "#{path} has version #{version} of the ABI, and this gem needs #{ABI}; install both of one version" if version < ABI

      library
    end

    LIBRARY = open_library
    private_constant :LIBRARY

    def self.function(name, result, arguments, **options)
      address = LIBRARY.find_function(name) || raise(Error, "this libsupermachine has no #{name}; install a newer one")
      FFI::Function.new(result, arguments, address, **options)
    end
    private_class_method :open_library, :glibc?, :function

    BYTES_FREE = function("sm_bytes_free", :void, [:pointer])
    QUEUE_OPEN = function("sm_queue_open", :int32, %i[pointer pointer])
    QUEUE_NEXT = function("sm_queue_next", :int32, %i[uint64 pointer])
    QUEUE_CLOSE = function("sm_queue_close", :int32, [:uint64])
    CALL_ABANDON = function("sm_call_abandon", :int32, [:uint64])
    SIGNALS_CHECK = function("sm_signals_check", :int32, [])
    CALLS = Hash.new do |calls, name|
      calls[name] = function("sm_#{name}", :int32, %i[pointer uint64 buffer_in size_t pointer])
    end
    private_constant :BYTES_FREE, :QUEUE_OPEN, :QUEUE_NEXT, :QUEUE_CLOSE, :CALL_ABANDON, :CALLS

    # Takes over what the library has written: a hash with symbols as keys.
    def self.take(bytes)
      return {} if bytes[:len].zero?

      MessagePack.unpack(bytes[:data].read_bytes(bytes[:len]), symbolize_keys: true)
    ensure
      BYTES_FREE.call(bytes)
    end

    # A queue that one call at a time uses. It is waited for by its file descriptor, which is what lets threads, fibers and Ctrl-C have their turn.
    class Queue
      def initialize
        handle = FFI::MemoryPointer.new(:uint64)
        fd = FFI::MemoryPointer.new(:int)
        code = QUEUE_OPEN.call(handle, fd)
        raise Error.of(code, { message: "no completion queue can be opened" }) unless code.zero?

        @handle = handle.read_uint64
        @io = IO.for_fd(fd.read_int, autoclose: false)
        @token = FFI::MemoryPointer.new(:uint64)
        @async = Async.new
        @async[:queue] = @handle
        @async[:call] = @token
        @bytes = Bytes.new
        @completion = Completion.new
      end

      def close
        @io = nil
        QUEUE_CLOSE.call(@handle)
      end

      # Makes a call and returns its result. Whatever interrupts it, what the call makes is taken or released.
      def call(function, handle, request, progress)
        @token.write_uint64(0)
        ended = false
        Thread.handle_interrupt(Object => :never) do
          code = function.call(@async, handle, request, request.bytesize, @bytes)
          raise Error.of(code, Native.take(@bytes)) unless code.zero?

          loop do
            QUEUE_NEXT.call(@handle, @completion)
            case @completion[:kind]
            when RESULT
              ended = true
              value = Native.take(@completion[:payload])
              return value if @completion[:code].zero?

              raise Error.of(@completion[:code], value)
            when EVENT
              event = Native.take(@completion[:payload])
              Thread.handle_interrupt(Object => :immediate) { progress&.call(event) }
            else
              Thread.handle_interrupt(Object => :immediate) { @io.wait_readable }
            end
          end
        end
      ensure
        CALL_ABANDON.call(@token.read_uint64) unless ended || @token.read_uint64.zero?
      end
    end
    private_constant :Queue

    @idle = Thread::Queue.new # safe in handlers of signals too
    MOST_IDLE = 32
    private_constant :MOST_IDLE

    class << self
      # Makes a call that ends within microseconds.
      def quick(name, handle = 0, **options)
        request = encode(options)
        bytes, @spare = @spare || Bytes.new, nil # a handler of a signal may come between, and call too
        code = CALLS[name].call(nil, handle, request, request.bytesize, bytes)
        value = take(bytes)
        @spare = bytes
        code.zero? ? value : raise(Error.of(code, value))
      end

      # Makes a call and waits for its end.
      def call(name, handle = 0, progress = nil, **options)
        request = encode(options)
        queue = idle_queue
        begin
          queue.call(CALLS[name], handle, request, progress)
        ensure
          @idle.size < MOST_IDLE ? @idle.push(queue) : queue.close
        end
      end

      # Makes a call whose outcome nobody wants to know, on this thread.
      def quietly(name, handle)
        CALLS[name].call(nil, handle, "", 0, bytes = Bytes.new)
        BYTES_FREE.call(bytes)
      end

      # A socket that owns a file descriptor of the library's; nil if there is none.
      def socket(fd)
        UNIXSocket.for_fd(fd) unless fd.negative?
      end

      # A program's arguments, checked.
      def argv(args)
        return args.map { |a| a.respond_to?(:to_path) ? a.to_path : a } if args.is_a?(Array)

        raise TypeError, 'args is an array of the program and its arguments; for a shell command use ["sh", "-c", command]'
      end

      # In these options of the library times are whole milliseconds; here they are seconds, and have no unit in their names.
      SECONDS = %i[timeout grace idle_timeout acquire_timeout older lifetime].freeze

      # Options as the library takes them, without those that are nil.
      def options(given)
        given.compact.to_h do |key, value|
          next [key, plain(key, value)] unless SECONDS.include?(key)
          raise ArgumentError, "#{key}: a time of #{value} seconds is not possible" if value.negative?

          [:"#{key}_ms", (value * 1000).ceil]
        end
      end

      # The options of a program that is given as its arguments, or as a hash of args and others.
      def program(given)
        return options({ args: argv(given) }) unless given.is_a?(Hash)

        given = given.transform_keys(&:to_sym)
        options({ **given, args: argv(given[:args]) })
      end

      private

      def idle_queue
        @idle.pop(true)
      rescue ThreadError
        Queue.new
      end

      NO_OPTIONS = MessagePack.pack({}).freeze

      def encode(given) = given.empty? ? NO_OPTIONS : MessagePack.pack(options(given))

      def plain(key, value)
        if key == :env && value.is_a?(Hash) then value.map { |k, v| "#{k}=#{v}" }
        elsif key == :limits && value.is_a?(Hash) then value.map { |name, limit| "#{name}=#{Array(limit).join(":")}" }
        elsif value.respond_to?(:handle) then value.handle
        elsif value.respond_to?(:to_path) then value.to_path
        else value
        end
      end
    end
  end
end
