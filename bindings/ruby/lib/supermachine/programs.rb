# frozen_string_literal: true

require_relative "process"

module Supermachine
  # A program that runs by itself: its number, for VM#attach, and its process ID in the guest.
  Spawned = Struct.new(:id, :pid, keyword_init: true)

  # What a chain has done: outputs has a Result for each program, up to the last that was tried; failed is which was the first to fail, counted from 0, or
  # nil; error why one could not be run, whose result is then empty, or nil.
  Chain = Struct.new(:outputs, :failed, :error, keyword_init: true) do
    def self.of(r)
      new(outputs: r[:outputs].map { |o| Result.new(o) }, failed: (r[:failed] unless r[:failed].negative?), error: (r[:error] unless r[:error].empty?))
    end

    # Whether no program failed.
    def success? = failed.nil? && error.nil?
  end

  # A VM's programs. Many options are the same everywhere: env over the image's; workdir; user as NAME|UID[:GROUP|GID]; timeout in seconds, after which
  # the program is killed; limits as setrlimit has them, {nofile: 1024, as: [1 << 30, "unlimited"]} (soft, hard) or ["nofile=1024"].
  module Programs
    # Runs a program to its end and collects what it writes: up to 64 MiB of each stream, and more than that is an error; with max_output up to so many
    # bytes, and the rest is dropped. stdin: what it reads. The result of one that was killed after its timeout says timed_out. check: raise an ExitError
    # unless it exits with 0.
    def run(args, stdin: nil, env: nil, workdir: nil, user: nil, timeout: nil, limits: nil, max_output: nil, check: false)
      argv = Native.argv(args)
      result = Result.new(Native.call(
        "vm_run", handle, args: argv, stdin: stdin, env: env, workdir: workdir, user: user, timeout: timeout, limits: limits, max_output: max_output
      ))
      raise ExitError.new(argv, result) if check && !result.success?

      result
    end

    # Starts a program and returns once it runs. stdin, stdout, stderr: which streams are wanted. tty: run it on a terminal of rows and cols. With a
    # block, yields the program and closes it at its end.
    def exec(args, stdin: false, stdout: true, stderr: false, tty: false, rows: nil, cols: nil, env: nil, workdir: nil, user: nil, timeout: nil, limits: nil,
             &block)
      Process.opened(Process.new(Native.call(
        "vm_exec", handle, args: Native.argv(args), stdin: stdin, stdout: stdout, stderr: stderr, tty: tty, rows: rows, cols: cols, env: env,
        workdir: workdir, user: user, timeout: timeout, limits: limits
      )), &block)
    end

    # Starts a program that runs by itself: the guest keeps the end of its output, up to 256 KiB, and how it ends, for attach. Copies of the VM have it
    # too. stdin: leave its input open for who attaches. tty: run it on a terminal of rows and cols.
    def spawn(args, stdin: false, tty: false, rows: nil, cols: nil, env: nil, workdir: nil, user: nil, timeout: nil, limits: nil)
      Spawned.new(**Native.call(
        "vm_spawn", handle, args: Native.argv(args), stdin: stdin, tty: tty, rows: rows, cols: cols, env: env, workdir: workdir, user: user,
        timeout: timeout, limits: limits
      ).slice(:id, :pid))
    end

    # Attaches to a program that runs by itself: what the guest has kept of its output comes first, then what it writes. Any number may be attached;
    # closing ends the attachment alone. Once one has waited for its end the guest forgets the program.
    def attach(id, stdin: false, stdout: true, stderr: false, &block)
      Process.opened(Process.new(Native.call("vm_attach", handle, id: id, stdin: stdin, stdout: stdout, stderr: stderr)), &block)
    end

    # Lists the programs that run, and those that ran by themselves, have ended, and whose exit status nobody has got, the oldest first: at most 4096.
    # The keys: id, pid, args, uid, started_ms, workload, detached, tty, ended.
    def programs = Native.call("vm_programs", handle)[:programs]

    # Writes files and runs programs one after another, until one of them fails; with continue_on_error, all of them. commands: arrays of arguments, or
    # hashes of args, env, workdir, user, timeout, limits. files: a hash of paths and contents, or hashes of path, data, mode, owner. timeout: seconds,
    # for all together. max_output: of each program, as in run.
    def chain(commands, files: nil, continue_on_error: false, timeout: nil, max_output: nil)
      raise TypeError, "commands is an array, of arrays of arguments or of hashes" unless commands.is_a?(Array)

      files = files.map { |path, data| { path: path, data: data } } if files.is_a?(Hash)
      Chain.of(Native.call(
        "vm_chain", handle, commands: commands.map { |c| Native.program(c) }, files: files&.map { |f| Native.options(f.transform_keys(&:to_sym)) },
        continue_on_error: continue_on_error, timeout: timeout, max_output: max_output
      ))
    end

    # Starts a program as the workload: it runs by itself, and gets the stop signal when the VM is stopped.
    def start_workload(args, env: nil, workdir: nil, user: nil, timeout: nil, limits: nil)
      Native.call("vm_start_workload", handle, args: Native.argv(args), env: env, workdir: workdir, user: user, timeout: timeout, limits: limits)
      nil
    end

    # Attaches to the workload: what the guest has kept of its output comes first, then what it writes. Closing ends the following alone.
    def logs(&block) = Process.opened(Process.new(Native.call("vm_follow", handle)), &block)
  end
end
