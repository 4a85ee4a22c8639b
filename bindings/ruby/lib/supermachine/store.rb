# frozen_string_literal: true

require_relative "handle"

module Supermachine
  # Where images and snapshots are kept. The functions that are given none use the user's own.
  class Store < Handle
    KIND = "store"

    # With a block, yields the store and closes it at its end.
    def self.open(dir = nil, assets: nil, &block) = opened(new(dir, assets: assets), &block)

    def initialize(dir = nil, assets: nil)
      super(Native.quick("store_open", 0, dir: dir, assets: assets)[:store])
    end

    # Makes an OCI image available and describes it. Options: pull, platform, insecure. A block is called with each step.
    def pull(ref, **options, &progress) = Native.call("store_pull", handle, progress, ref: ref, **options)

    # Lists the OCI images in the store.
    def images = Native.call("store_images", handle)[:images] || []

    # Forgets the reference of an OCI image.
    def remove_image(ref)
      Native.call("store_remove_image", handle, ref: ref)
      nil
    end

    # Lists the snapshots in the store, newest first.
    def snapshots = Native.call("store_snapshots", handle)[:snapshots] || []

    # Describes one snapshot.
    def inspect_snapshot(name) = Native.call("store_inspect", handle, name: name)

    # Deletes a snapshot. VMs that were started from it go on.
    def remove(name)
      Native.call("store_remove", handle, name: name)
      nil
    end

    # Deletes the snapshots that may go, and describes them. older: not used for so many seconds; max_bytes, unreferenced, all.
    def prune(older: nil, max_bytes: nil, unreferenced: false, all: false)
      Native.call("store_prune", handle, older: older, max_bytes: max_bytes, unreferenced: unreferenced, all: all)[:snapshots] || []
    end

    # Makes a snapshot that holds everything itself from one that holds differences, and returns its ID.
    def flatten(name) = Native.call("store_flatten", handle, name: name)[:id]
  end
end
