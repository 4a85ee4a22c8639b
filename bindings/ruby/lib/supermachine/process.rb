# frozen_string_literal: true

require_relative "handle"

module Supermachine
  # How a program ended: code is its exit status, 128 + signal if a signal ended it; signal that number, else 0; timed_out whether its timeout passed;
  # truncated whether a background child still held the output when it exited; duration, user and system are seconds, max_rss bytes.
  Exit = Struct.new(:code, :signal, :timed_out, :truncated, :duration, :user, :system, :max_rss, keyword_init: true) do
    def self.of(r)
      new(code: r[:code], signal: r[:signal], timed_out: r[:timed_out], truncated: r[:truncated], duration: r[:duration_us] / 1e6,
          user: r[:user_us] / 1e6, system: r[:system_us] / 1e6, max_rss: r[:max_rss])
    end

    # Whether it exited with 0.
    def success? = code.zero?
  end

  # What a program wrote, as binary strings, and how it ended.
  class Result
    # What it wrote, as far as it was kept.
    attr_reader :stdout, :stderr
    # How it ended: an Exit, whose members are the result's too.
    attr_reader :exit
    # How many bytes it wrote, those included that were dropped because of max_output.
    attr_reader :stdout_bytes, :stderr_bytes
    # Whether stdout and stderr are only the beginning of that.
    attr_reader :stdout_truncated, :stderr_truncated

    def initialize(value)
      @stdout, @stderr, @exit = value[:stdout] || "".b, value[:stderr] || "".b, Exit.of(value)
      @stdout_bytes, @stderr_bytes, @stdout_truncated, @stderr_truncated =
        value.values_at(:stdout_bytes, :stderr_bytes, :stdout_truncated, :stderr_truncated)
    end

    Exit.members.each { |m| define_method(m) { @exit[m] } }

    def success? = @exit.success?

    # stdout as UTF-8; what is none is replaced.
    def text = @stdout.dup.force_encoding(Encoding::UTF_8).scrub
  end

  # Raised by run with check: true when the program does not exit with 0. result has all of it.
  class ExitError < StandardError
    attr_reader :result

    def initialize(args, result)
      @result = result
      how = result.signal.zero? ? "exited with #{result.code}" : "was ended by signal #{result.signal}"
      last = result.stderr.dup.force_encoding(Encoding::UTF_8).scrub.strip.lines.last
      super("#{args.first} #{how}#{": #{last}" if last}")
    end
  end

  # A program that runs in a VM. Its elements are the lines that it writes to stdout.
  class Process < Handle
    include Enumerable

    KIND = "exec"

    # Its number in the guest, for VM#attach.
    attr_reader :id
    # Process ID in the guest.
    attr_reader :pid
    # An IO to write to, closed to end the input; nil if it was not asked for.
    attr_reader :stdin
    # IOs to read from; nil if they were not asked for.
    attr_reader :stdout, :stderr

    def initialize(started)
      super(started[:exec])
      @id, @pid = started.values_at(:id, :pid)
      @stdin, @stdout, @stderr = started.values_at(:stdin, :stdout, :stderr).map { |fd| Native.socket(fd) }
    end

    # Waits for the program's end and returns an Exit. What it wrote can still be read.
    def wait = Exit.of(Native.call("exec_wait", handle))

    # Sends a signal, such as "TERM", to the program's process group.
    def kill(signal = "KILL")
      Native.quick("exec_signal", handle, signal: signal.to_s)
      nil
    end

    # Changes the size of the program's terminal.
    def resize(rows, cols)
      Native.quick("exec_resize", handle, rows: rows, cols: cols)
      nil
    end

    # Has the program run on by itself: its streams here end, wait raises an error, and VM#attach attaches to its id. Of an attachment it ends that alone.
    def detach
      Native.call("exec_detach", handle)
      nil
    end

    def each(&block)
      return to_enum unless block
      raise ArgumentError, "stdout was not asked for" unless @stdout

      @stdout.each_line(&block)
      self
    end

    # Kills the program if it still runs and was not detached, and closes its streams. Of an attachment it ends that alone.
    def close
      [@stdin, @stdout, @stderr].each { |io| io&.close }
      super
    end
  end
end
