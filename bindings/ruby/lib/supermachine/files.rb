# frozen_string_literal: true

require_relative "handle"

module Supermachine
  # A file of the guest. path is as it was asked for, or below the directory that is listed: check it before you use it on the host, for it is the
  # guest's, and a binary String if it is not UTF-8. type is file, directory, symlink, fifo, socket, block or char; mode has the permissions and the
  # set-user-ID, set-group-ID and sticky bits; mtime is a Time; target a symbolic link's, else nil; links how many names it has; error why it could not be
  # examined, or a directory not be read to its end, else nil.
  FileInfo = Struct.new(:path, :type, :size, :mode, :uid, :gid, :mtime, :target, :links, :error, keyword_init: true) do
    def self.of(r)
      new(**r.slice(:path, :type, :size, :mode, :uid, :gid, :links), mtime: Time.at(0, r[:mtime_ms], :millisecond),
          target: (r[:target] unless r[:target].empty?), error: (r[:error] unless r[:error].empty?))
    end

    def file? = type == "file"
    def directory? = type == "directory"
    def symlink? = type == "symlink"
  end

  # A change of a file of the guest: op is created, modified, removed, renamed, attributes, or overflow (events were lost); path is below the directory that
  # is watched, "." what is watched itself; from the old path of what was renamed, else nil; dir whether it is a directory's.
  FileEvent = Struct.new(:op, :path, :from, :dir, keyword_init: true) do
    def self.of(r) = new(**r.slice(:op, :path, :dir), from: (r[:from] unless r[:from].empty?))
  end

  # A directory of the guest as it is listed.
  class Entries < Handle # :nodoc:
    KIND = "entries"

    def initialize(made)
      super(made[:entries])
    end

    def each
      until (batch = Native.call("entries_next", handle)[:entries]).empty?
        batch.each { |e| yield FileInfo.of(e) }
      end
      nil
    end
  end

  # A watch of a file or a directory of the guest. Its elements are FileEvents, until what is watched is gone.
  class Watch < Handle
    include Enumerable

    KIND = "watch"

    def initialize(made)
      super(made[:watch])
      @pending = []
    end

    # Waits for changes and yields them. What a block that breaks has not seen comes next time.
    def each
      return to_enum unless block_given?

      yield FileEvent.of(@pending.shift) while more?
      self
    end

    private

    def more? = @pending.any? || (@pending = Native.call("watch_next", handle)[:events]).any?
  end

  # A file of the guest, or a tree of them as a tar archive, that is read or written as a stream of any size.
  class GuestFile < Handle
    KIND = "file"

    class << self
      # Yields the IO of one that is read. What was read to its end and is not all there is, is an error.
      def read(file)
        return file unless block_given?

        opened(file) do |f|
          r = yield f.io
          f.commit if f.ended?
          r
        end
      end

      # Yields the IO of one that is written, and commits it unless the block raises.
      def write(file)
        return file unless block_given?

        opened(file) do |f|
          r = yield f.io
          f.commit
          r
        end
      end
    end

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

    # Whether the stream was read to its end.
    def ended? = !@io.closed? && @io.read_nonblock(1, exception: false).nil?

    # Gives the transfer up. A file that was not committed stays as it was.
    def close
      super
    ensure
      @io.close
    end
  end

  # A VM's files. Paths are absolute. owner is NAME|UID[:GROUP|GID] of the image's accounts.
  module Files
    # Reads a file of the guest, of up to 64 MiB, as a binary string: from offset on, and length bytes at most.
    def read_file(path, offset: nil, length: nil, max_bytes: nil)
      Native.call("vm_read_file", handle, path: path, offset: offset, length: length, max_bytes: max_bytes)[:data] || "".b
    end

    # Creates or replaces a file of the guest, all or nothing. mode: permission bits, default 0o644; owner: default root. append: add to its end. offset:
    # write over the contents of an existing file from there on. These two are not atomic.
    def write_file(path, data, mode: nil, owner: nil, append: false, offset: nil)
      Native.call("vm_write_file", handle, path: path, data: data, **written(mode, owner, append, offset))
      nil
    end

    # Reads a file of the guest, of any size, as a stream, from offset on, and length bytes at most: yields the IO, or returns a GuestFile.
    def open_file(path, offset: nil, length: nil, &block)
      GuestFile.read(GuestFile.new(Native.call("vm_open_file", handle, path: path, offset: offset, length: length)), &block)
    end

    # Creates or replaces a file of the guest with what is written to a stream: yields the IO, and the file appears at the end of the block, unless that
    # raises. Without a block, returns a GuestFile to be committed. The options are those of write_file.
    def create_file(path, mode: nil, owner: nil, append: false, offset: nil, &block)
      GuestFile.write(GuestFile.new(Native.call("vm_create_file", handle, path: path, **written(mode, owner, append, offset))), &block)
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

    # Describes a file of the guest. follow: what a symbolic link points to, and not itself.
    def stat(path, follow: true) = FileInfo.of(Native.call("vm_stat", handle, path: path, no_follow: !follow))

    # Yields a FileInfo for each entry of a directory, in no order; without a block, returns an Enumerator.
    def list(path, &block)
      return enum_for(:list, path) unless block

      walk(path, depth: 1, &block)
    end

    # Yields a FileInfo for everything below a directory, down to depth, or all of it; directories before what is in them. Links are not followed.
    # one_file_system: leave out what is mounted below. Without a block, returns an Enumerator.
    def walk(path, depth: -1, one_file_system: false, &block)
      return enum_for(:walk, path, depth: depth, one_file_system: one_file_system) unless block

      Entries.opened(Entries.new(Native.call("vm_list", handle, path: path, depth: depth, one_file_system: one_file_system))) { |all| all.each(&block) }
    end

    # Watches a file or a directory of the guest, recursive: and everything below, and returns once changes are seen. With a block, yields the Watch and
    # closes it at its end.
    def watch(path, recursive: false, &block)
      Watch.opened(Watch.new(Native.call("vm_watch", handle, path: path, recursive: recursive)), &block)
    end

    # Makes a directory. mode: default 0o755. parents: and those that it is in; one that exists is no error. owner: of all that are made; default root.
    def mkdir(path, mode: nil, parents: false, owner: nil) = done("vm_mkdir", path: path, mode: mode, parents: parents, owner: owner)

    # Removes a file, a link or an empty directory. recursive: and everything in it.
    def remove(path, recursive: false) = done("vm_remove", path: path, recursive: recursive)

    # Gives a file or a directory another name in the same file system. replace: what has that name goes, and is no error.
    def rename(path, to, replace: true) = done("vm_rename", path: path, to: to, no_replace: !replace)

    # Sets permission bits, up to 0o7777. recursive: and those of everything below, links aside.
    def chmod(path, mode, recursive: false) = done("vm_chmod", path: path, mode: mode, recursive: recursive)

    # Sets the owner, or with ":GROUP" the group alone. recursive: and that of everything below. follow: of what a symbolic link points to, and not of itself.
    def chown(path, owner, recursive: false, follow: true)
      done("vm_chown", path: path, owner: owner, recursive: recursive, no_follow: !follow)
    end

    # Makes a symbolic link at path that points to target.
    def symlink(target, path) = done("vm_symlink", path: path, target: target)

    # Reads a file or a tree of the guest as a tar archive: yields the IO, or returns a GuestFile. Unpack it as an archive that may be hostile; copy_out
    # does. one_file_system: leave out what is mounted below.
    def pack(path, one_file_system: false, &block)
      GuestFile.read(GuestFile.new(Native.call("vm_pack", handle, path: path, one_file_system: one_file_system)), &block)
    end

    # Unpacks the tar archive that is written to a stream into a directory of the guest, and never outside of it: yields the IO, and all is there at the end
    # of the block. Without a block, returns a GuestFile to be committed. owners: keep owners, by number; else owner has all, default root. setuid: keep
    # set-user-ID and set-group-ID bits. special: make devices and FIFOs; skip_special: leave them out; else they are an error.
    def unpack(path, owners: false, owner: nil, setuid: false, special: false, skip_special: false, &block)
      GuestFile.write(GuestFile.new(Native.call(
        "vm_unpack", handle, path: path, owners: owners, owner: owner, setuid: setuid, special: special, skip_special: skip_special
      )), &block)
    end

    # Copies a file or a tree of the host into the guest, as cp -a does: into target if that is a directory, else under that name. With "/." at its end the
    # source is what is in the directory. The options are those of unpack. An error leaves a part of the copy.
    def copy_in(source, target, owners: false, owner: nil, setuid: false, special: false, skip_special: false)
      done("vm_copy_in", source: source, target: target, owners: owners, owner: owner, setuid: setuid, special: special, skip_special: skip_special)
    end

    # Copies a file or a tree of the guest to the host, as copy_in does; whatever is in the guest, nothing outside of the copy is written. owners: keep
    # owners, by number, which takes root. setuid, skip_special, one_file_system; max_bytes, max_entries: more than that is an error.
    def copy_out(source, target, owners: false, setuid: false, skip_special: false, one_file_system: false, max_bytes: nil, max_entries: nil)
      done("vm_copy_out", source: source, target: target, owners: owners, setuid: setuid, skip_special: skip_special, one_file_system: one_file_system,
                          max_bytes: max_bytes, max_entries: max_entries)
    end

    private

    def written(mode, owner, append, offset) = { mode: mode, owner: owner, append: append, in_place: !offset.nil?, offset: offset }

    def done(call, **options)
      Native.call(call, handle, **options)
      nil
    end
  end
end
